package agent

import (
	"bufio"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// succeeds reports whether the function's server answers that path with a 2xx.
func succeeds(host string, port int, path string) bool {
	status, err := request(host, port, "GET", path, "", 5*time.Second)
	return err == nil && status/100 == 2
}

// request sends one HTTP/1.1 request to the function's server and returns the
// status of the answer. net/http would double the agent's size, and with it
// what a clone has to page in.
func request(host string, port int, method, path, body string, timeout time.Duration) (status int, err error) {
	c, err := net.DialTimeout("tcp", net.JoinHostPort(host, strconv.Itoa(port)), timeout)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(timeout))
	_, err = fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", method, path, len(body), body)
	if err != nil {
		return 0, err
	}
	line, err := bufio.NewReaderSize(c, 512).ReadSlice('\n')
	if err != nil {
		return 0, fmt.Errorf("reading the status line: %w", err)
	}
	f := strings.Fields(string(line))
	if len(f) < 2 || !strings.HasPrefix(f[0], "HTTP/") {
		return 0, fmt.Errorf("the answer is not HTTP: %.40q", line)
	}
	return strconv.Atoi(f[1])
}
