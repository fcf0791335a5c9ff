package agent

import (
	"encoding/binary"
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

// settings6 are what a guest with IPv6 has different: nobody tells it its address.
var settings6 = []struct{ name, value string }{{"accept_ra", "0"}, {"autoconf", "0"}, {"disable_ipv6", "0"}}

// newAddress is a message of rtnetlink that adds an IPv6 address, of a struct nlmsghdr,
// a struct ifaddrmsg and one attribute. An ioctl would have the address wait for
// whether others have it.
type newAddress struct {
	length                        uint32
	kind, flags                   uint16
	sequence, port                uint32
	family, prefix, noDAD, scope  uint8
	index                         uint32
	attributeLength, attributeKey uint16
	address                       [16]byte
}

// addAddress6 adds an address that is there at once.
func addAddress6(index int, address [16]byte, prefix uint8) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	m := newAddress{kind: unix.RTM_NEWADDR, flags: unix.NLM_F_REQUEST | unix.NLM_F_ACK | unix.NLM_F_CREATE | unix.NLM_F_EXCL, family: unix.AF_INET6,
		prefix: prefix, noDAD: unix.IFA_F_NODAD, index: uint32(index), attributeLength: 4 + 16, attributeKey: unix.IFA_LOCAL, address: address}
	m.length = uint32(unsafe.Sizeof(m))
	// Sound: m is all of the slice, has no pointers and no padding, and lives until after the call.
	b := unsafe.Slice((*byte)(unsafe.Pointer(&m)), unsafe.Sizeof(m))
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	var answer [128]byte
	n, _, err := unix.Recvfrom(fd, answer[:], 0)
	if err != nil {
		return err
	}
	if n < 20 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return fmt.Errorf("an answer of %d bytes", n)
	}
	if e := int32(binary.NativeEndian.Uint32(answer[16:])); e != 0 {
		return unix.Errno(-e)
	}
	return nil
}

// route6 is the kernel's struct in6_rtmsg.
type route6 struct {
	dst, src, gateway [16]byte
	kind              uint32
	dstLen, srcLen    uint16
	metric            uint32
	info              uint64
	flags             uint32
	index             int32
}

// setUpIPv6 gives the machine the one IPv6 address that guests have, where they have
// one.
func setUpIPv6() error {
	for _, s := range settings6 {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/eth0/"+s.name, []byte(s.value), 0); err != nil {
			return fmt.Errorf("setting up IPv6: %w", err)
		}
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("setting up IPv6: %w", err)
	}
	defer unix.Close(fd)
	dev, err := net.InterfaceByName("eth0")
	if err != nil {
		return fmt.Errorf("setting up IPv6: %w", err)
	}
	if err := addAddress6(dev.Index, guest.Address6.As16(), guest.PrefixLen6); err != nil {
		return fmt.Errorf("setting the IPv6 address of eth0: %w", err)
	}
	r := route6{gateway: guest.Gateway6.As16(), metric: 1024, flags: unix.RTF_UP | unix.RTF_GATEWAY, index: int32(dev.Index)}
	// Sound: the kernel reads a struct in6_rtmsg, no larger than r, during the call.
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCADDRT, uintptr(unsafe.Pointer(&r))); e != 0 {
		return fmt.Errorf("setting the default route of IPv6: %w", e)
	}
	return nil
}
