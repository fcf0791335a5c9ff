import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.SecureRandom;
import java.util.HexFormat;
import java.util.Random;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * A function whose random numbers differ between the clones of its snapshot. Deploy it with --clone-hook /clone.
 *
 * <p>Random, SplittableRandom and ThreadLocalRandom were seeded before the snapshot; the last cannot be seeded again, so
 * what may not repeat does not come from it. A SecureRandom takes what it is given beside what it has.
 */
public class Server {
    private static final Pattern ENTROPY = Pattern.compile("\"entropy\"\\s*:\\s*\"([0-9a-f]+)\"");

    private static final SecureRandom secure = new SecureRandom();
    private static Random random = new Random();

    /** Takes the body of the hook; false if there is no entropy in it. */
    private static synchronized boolean renew(String hook) {
        Matcher entropy = ENTROPY.matcher(hook);
        if (!entropy.find()) {
            return false;
        }
        byte[] bytes = HexFormat.of().parseHex(entropy.group(1));
        random = new Random(ByteBuffer.wrap(bytes).getLong());
        secure.setSeed(bytes);
        return true;
    }

    private static synchronized String draw(Random source) {
        byte[] bytes = new byte[16];
        source.nextBytes(bytes);
        return HexFormat.of().formatHex(bytes);
    }

    public static void main(String[] args) throws IOException {
        // What runs now need not be loaded by every clone when its hook is called.
        renew("{\"entropy\": \"" + HexFormat.of().formatHex(secure.generateSeed(64)) + "\"}");
        String seed = System.getenv("EXAMPLE_SEED");
        if (seed != null) { // two processes with one seed are as two clones
            random = new Random(seed.hashCode());
        }
        int port = Integer.parseInt(System.getenv().getOrDefault("PORT", "8080"));
        HttpServer server = HttpServer.create(new InetSocketAddress(port), 0);
        server.createContext("/", exchange -> answer(exchange,
                "{\"random\": \"" + draw(random) + "\", \"secure\": \"" + draw(secure) + "\"}\n"));
        server.createContext("/clone", exchange -> {
            String hook = new String(exchange.getRequestBody().readAllBytes(), StandardCharsets.UTF_8);
            if (renew(hook)) {
                answer(exchange, "{}\n");
            } else {
                exchange.sendResponseHeaders(400, -1);
                exchange.close();
            }
        });
        server.start();
    }

    private static void answer(HttpExchange exchange, String body) throws IOException {
        byte[] bytes = body.getBytes(StandardCharsets.UTF_8);
        exchange.sendResponseHeaders(200, bytes.length);
        exchange.getResponseBody().write(bytes);
        exchange.close();
    }
}
