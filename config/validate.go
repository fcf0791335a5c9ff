package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skep-dev/skep/api"
)

var (
	domainRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)
	policyRE = regexp.MustCompile(`^[a-z0-9-]*$`)
)

// In bytes; see snapshot.ValidID for why they are not in the expressions.
const maxDomain, maxPolicy = 182, 32

// maxSocketPath is what sun_path holds with its final NUL.
const maxSocketPath = 107

// Validate reports everything that is wrong with the settings, a line each.
func (c Config) Validate() error {
	return errors.Join(c.validatePaths(), c.validateAddresses(), c.validateChoices(), c.validateNumbers())
}

func (c Config) validatePaths() error {
	var errs []error
	for _, p := range []struct{ name, path string }{{"data_dir", c.DataDir}, {"results_dir", c.ResultsDir}, {"run_dir", c.RunDir}, {"socket", c.Socket}, {"kernel_dir", c.KernelDir}, {"store_key_file", c.StoreKeyFile}} {
		if p.path == "" && (p.name == "results_dir" || p.name == "socket" || p.name == "kernel_dir" || p.name == "store_key_file") {
			continue // stands for its default
		}
		if !filepath.IsAbs(p.path) {
			errs = append(errs, fmt.Errorf("%s is %q: want an absolute path", p.name, p.path))
		}
	}
	if len(c.Socket) > maxSocketPath {
		errs = append(errs, fmt.Errorf("socket is %d bytes long: the kernel takes at most %d; choose a shorter run_dir", len(c.Socket), maxSocketPath))
	}
	if g := c.CgroupRoot; g != "auto" && g != "none" && !filepath.IsAbs(g) {
		errs = append(errs, fmt.Errorf("cgroup_root is %q: want auto, none or an absolute path", g))
	}
	if c.Modules != "" && c.Kernel == "" {
		errs = append(errs, errors.New("kernel_modules is set without kernel: name the kernel they belong to"))
	}
	return errors.Join(errs...)
}

func (c Config) validateAddresses() error {
	var errs []error
	for _, a := range []struct{ name, addr string }{{"listen", c.Listen}, {"control_listen", c.ControlListen}, {"address", c.Address}, {"metrics_listen", c.MetricsListen}} {
		if a.addr == "" && a.name != "listen" {
			continue
		}
		if _, port, err := net.SplitHostPort(a.addr); err != nil || port == "" {
			errs = append(errs, fmt.Errorf("%s is %q: want host:port, such as 127.0.0.1:7080", a.name, a.addr))
		}
	}
	if u, err := url.Parse(c.OTLPEndpoint); c.OTLPEndpoint != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "") {
		errs = append(errs, fmt.Errorf("otlp_endpoint is %q: want a collector's address, such as http://127.0.0.1:4318", c.OTLPEndpoint))
	}
	for _, e := range c.StoreEndpoints {
		if u, err := url.Parse(e); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.User != nil {
			errs = append(errs, fmt.Errorf("store_endpoints has %q: want an object store's URL, such as http://127.0.0.1:9000", e))
		}
	}
	if c.StoreBucket == "" && (len(c.StoreEndpoints) > 0 || c.StorePrefix != "" || c.StoreRegion != "") {
		errs = append(errs, errors.New("store_endpoints, store_prefix or store_region is set without store_bucket: name the bucket"))
	}
	if c.StoreBucket == "" && (c.StoreKeyFile != "" || c.StoreKeyCommand != "") {
		errs = append(errs, errors.New("store_key_file or store_key_command is set without store_bucket: name the bucket"))
	}
	if c.StoreKeyFile != "" && c.StoreKeyCommand != "" {
		errs = append(errs, errors.New("store_key_file and store_key_command are both set: want one of them"))
	}
	if c.StoreFillRate < 0 || c.StoreFillRate > 1<<20 {
		errs = append(errs, fmt.Errorf("store_fill_rate is %d: want MiB a second, or 0 for no bound", c.StoreFillRate))
	}
	if c.StoreCacheMiB < 0 || c.StoreCacheMiB > 1<<30 {
		errs = append(errs, fmt.Errorf("store_cache_mib is %d: want MiB, or 0 for no cache", c.StoreCacheMiB))
	}
	if c.StoreWait < api.Duration(time.Second) || c.StoreWait > api.Duration(time.Hour) {
		errs = append(errs, fmt.Errorf("store_wait is %v: want 1s to 1h", c.StoreWait))
	}
	if strings.Contains("/"+c.StorePrefix+"/", "/../") || strings.HasPrefix(c.StorePrefix, "/") || strings.ContainsFunc(c.StorePrefix, func(r rune) bool { return r <= ' ' || r > '~' }) {
		errs = append(errs, fmt.Errorf("store_prefix is %q: want a prefix of keys, such as team-a/", c.StorePrefix))
	}
	if c.ControlListen != "" && c.ControlTokenFile == "" {
		errs = append(errs, errors.New("control_listen is set without control_token_file: the control API is served over TCP only with a token"))
	}
	if len(c.Domain) > maxDomain || !domainRE.MatchString(c.Domain) || strings.Contains(c.Domain, "..") {
		errs = append(errs, fmt.Errorf("domain is %q: want a host name in lower case, such as localhost or fn.example.com", c.Domain))
	}
	if p, err := netip.ParsePrefix(c.NATPool); err != nil || !p.Addr().Is4() || p.Bits() < 8 || p.Bits() > 24 {
		errs = append(errs, fmt.Errorf("nat_pool is %q: want an IPv4 prefix of /8 to /24, such as 10.211.0.0/16", c.NATPool))
	}
	for _, s := range c.Nameservers {
		if _, err := netip.ParseAddr(s); err != nil {
			errs = append(errs, fmt.Errorf("nameservers has %q: want IP addresses", s))
		}
	}
	if _, err := c.TrustedProxies(); err != nil {
		errs = append(errs, err)
	}
	if _, err := c.Services(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// TrustedProxies reads TrustForwarded.
func (c Config) TrustedProxies() (out []netip.Prefix, err error) {
	for _, s := range c.TrustForwarded {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a, err := netip.ParseAddr(s)
			if err != nil || a.Zone() != "" {
				return nil, fmt.Errorf("trust_forwarded has %q: want an address or a prefix, such as 10.0.0.0/8", s)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// ListsFunctions says whether who asks the gateway for no function is told of
// all that there are.
func (c Config) ListsFunctions() bool {
	if c.ListFunctions != "auto" {
		return c.ListFunctions == "yes"
	}
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return false
	}
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

// Services reads HostServices: the port that guests see, and what is behind it.
func (c Config) Services() (map[int]netip.AddrPort, error) {
	services := make(map[int]netip.AddrPort)
	for _, s := range c.HostServices {
		seen, behind, _ := strings.Cut(s, "=")
		port, err := strconv.ParseUint(seen, 10, 16)
		if err != nil || port == 0 {
			return nil, fmt.Errorf("host_services has %q: want PORT=ADDRESS:PORT, such as 7090=127.0.0.1:7090", s)
		}
		target, err := netip.ParseAddrPort(behind)
		if err != nil || !target.Addr().Is4() || target.Port() == 0 {
			return nil, fmt.Errorf("host_services has %q: want PORT=ADDRESS:PORT with an IPv4 address, such as 7090=127.0.0.1:7090", s)
		}
		if _, twice := services[int(port)]; twice {
			return nil, fmt.Errorf("host_services has port %d twice", port)
		}
		services[int(port)] = target
	}
	return services, nil
}

func (c Config) validateChoices() error {
	var errs []error
	for _, v := range []struct {
		name, value string
		choices     []string
	}{
		{"vmm", c.VMM, []string{"auto", "qemu", "firecracker"}},
		{"accel", c.Accel, []string{"auto", "kvm", "tcg"}},
		{"list_functions", c.ListFunctions, []string{"auto", "yes", "no"}},
		{"log_level", c.LogLevel, []string{"debug", "info", "warn", "error"}},
		{"log_format", c.LogFormat, []string{"text", "json"}},
	} {
		if !slices.Contains(v.choices, v.value) {
			errs = append(errs, fmt.Errorf("%s is %q: want one of %s", v.name, v.value, strings.Join(v.choices, ", ")))
		}
	}
	if len(c.MemoryPolicy) > maxPolicy || !policyRE.MatchString(c.MemoryPolicy) {
		errs = append(errs, fmt.Errorf("memory_policy is %q: want a policy's name", c.MemoryPolicy))
	}
	return errors.Join(errs...)
}

func (c Config) validateNumbers() error {
	var errs []error
	for _, v := range []struct {
		name      string
		n, lo, hi int
	}{
		{"slots", c.Slots, 0, 1024},
		{"shells", c.Shells, 0, 1024},
		{"max_instances", c.MaxInstances, 0, 10_000},
		{"memory_budget_mib", c.MemoryBudget, 0, 64 << 20},
		{"vmm_memory_mib", c.VMMMemory, -1, 1 << 20},
		{"vmm_pids", c.VMMPIDs, -1, 1 << 20},
		{"vmm_cpus", c.VMMCPUs, -1, 1024},
		{"memory_sample_every", c.SampleEvery, 0, 1_000_000},
		{"max_body_mib", c.MaxBody, 0, 1 << 20},
		{"max_connections", c.MaxConnections, 0, 1_000_000},
		{"keep_records", c.KeepRecords, 0, 100_000_000},
		{"image_budget_mib", c.ImageBudget, 0, 1 << 30},
		{"snapshot_budget_mib", c.SnapshotBudget, 0, 1 << 30},
		{"keep_revisions", c.KeepRevisions, 1, 1000},
		{"keep_log_mib", c.KeepLogMiB, 1, 10_240},
	} {
		if v.n < v.lo || v.n > v.hi {
			errs = append(errs, fmt.Errorf("%s is %d: want %d to %d", v.name, v.n, v.lo, v.hi))
		}
	}
	if d := c.DrainTimeout; d < 0 || d > api.Duration(time.Hour) {
		errs = append(errs, fmt.Errorf("drain_timeout is %v: want 0s to 1h", d))
	}
	if d := c.KeepSnapshots; d < 0 {
		errs = append(errs, fmt.Errorf("keep_snapshots is %v: want a time, or 0s for ever", d))
	}
	if d := c.KeepImages; d < 0 {
		errs = append(errs, fmt.Errorf("keep_images is %v: want a time, or 0s for ever", d))
	}
	return errors.Join(errs...)
}
