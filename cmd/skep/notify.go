package main

import (
	"net"
	"strings"
)

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
