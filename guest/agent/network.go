package agent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// settings are the kernel's that containers' runtimes change too. One that the
// kernel does not have is left.
var settings = map[string]string{
	"/proc/sys/net/ipv6/conf/lo/disable_ipv6":       "0", // ::1, where "localhost" may be
	"/proc/sys/net/ipv4/ip_unprivileged_port_start": "0", // users other than root listen on port 80
}

// setUpNetwork gives the machine the one address that every guest has. The
// gateway's MAC is fixed too, so that no clone starts with a question for it.
// It uses ioctls: a netlink library would be a quarter of the agent.
func setUpNetwork() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("setting up the network: %w", err)
	}
	defer unix.Close(fd)
	if err := setFlags(fd, "lo", unix.IFF_UP); err != nil {
		return err
	}
	for name, value := range settings {
		if err := os.WriteFile(name, []byte(value), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("setting up the network: %w", err)
		}
	}
	mask := net.CIDRMask(guest.PrefixLen, 32)
	if err := setAddress(fd, "eth0", unix.SIOCSIFADDR, guest.Address.To4()); err != nil {
		return err
	}
	if err := setAddress(fd, "eth0", unix.SIOCSIFNETMASK, mask); err != nil {
		return err
	}
	if err := setFlags(fd, "eth0", unix.IFF_UP); err != nil {
		return err
	}
	if err := addDefaultRoute(fd, guest.Gateway); err != nil {
		return err
	}
	return addNeighbour(fd, "eth0", guest.Gateway, guest.HostMAC)
}

func setFlags(fd int, name string, flags uint16) error {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	r.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("setting %s up: %w", name, err)
	}
	return nil
}

func setAddress(fd int, name string, request uint, addr []byte) error {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := r.SetInet4Addr(addr); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, request, r); err != nil {
		return fmt.Errorf("setting the address of %s: %w", name, err)
	}
	return nil
}

// sockaddr is a struct sockaddr, or sockaddr_in.
type sockaddr struct {
	family uint16
	data   [14]byte
}

func inet(ip net.IP) sockaddr {
	a := sockaddr{family: unix.AF_INET}
	copy(a.data[2:], ip.To4())
	return a
}

// rtentry is the kernel's struct rtentry on 64-bit machines.
type rtentry struct {
	_                 uint64
	dst, gateway, net sockaddr
	flags             uint16
	_                 [22]byte // pad2 to pad4
	metric            int16
	_                 [6]byte
	dev               uintptr
	_                 [24]byte // mtu, window, irtt, padding
}

func addDefaultRoute(fd int, gateway net.IP) error {
	r := rtentry{dst: inet(net.IPv4zero), gateway: inet(gateway), net: inet(net.IPv4zero), flags: unix.RTF_UP | unix.RTF_GATEWAY}
	// Sound: the kernel reads a struct rtentry, no larger than r, during the call.
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCADDRT, uintptr(unsafe.Pointer(&r))); e != 0 {
		return fmt.Errorf("setting the default route: %w", e)
	}
	return nil
}

// Flags of an arpreq (linux/if_arp.h).
const (
	atfComplete  = 2
	atfPermanent = 4
)

// arpreq is the kernel's struct arpreq.
type arpreq struct {
	pa, ha  sockaddr
	flags   int32
	netmask sockaddr
	dev     [16]byte
}

func addNeighbour(fd int, dev string, ip net.IP, mac net.HardwareAddr) error {
	r := arpreq{pa: inet(ip), ha: sockaddr{family: unix.ARPHRD_ETHER}, flags: atfComplete | atfPermanent}
	copy(r.ha.data[:], mac)
	copy(r.dev[:len(r.dev)-1], dev)
	// Sound: the kernel reads a struct arpreq, no larger than r, during the call.
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSARP, uintptr(unsafe.Pointer(&r))); e != 0 {
		return fmt.Errorf("fixing the gateway's MAC address: %w", e)
	}
	return nil
}
