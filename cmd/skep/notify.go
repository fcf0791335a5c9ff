package main

import (
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/skep-dev/skep/config"
)

// endGrace is what the daemon's end may take beyond drain_timeout.
const endGrace = 30 * time.Second

// stopping is what the service manager is told when the end begins: how long it
// may take by the settings in force, whatever the unit says.
func stopping(cfg config.Config) string {
	return fmt.Sprintf("STOPPING=1\nEXTEND_TIMEOUT_USEC=%d", (cfg.DrainTimeout.D() + endGrace).Microseconds())
}

// notifySystemd tells the service manager how the daemon is, if it was started
// by one that wants to know: one datagram, see sd_notify(3).
func notifySystemd(environ []string, state string) error {
	for _, kv := range environ {
		path, ok := strings.CutPrefix(kv, "NOTIFY_SOCKET=")
		if !ok || path == "" {
			continue
		}
		conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write([]byte(state))
		return err
	}
	return nil
}
