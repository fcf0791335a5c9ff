// Package config is the daemon's and the CLI's one set of settings: a TOML
// file, the environment and flags, merged with known precedence, checked once,
// and able to say where each value came from. It stands beside the way of an
// invocation: cmd/skep reads it and hands every package its part.
package config

import (
	"time"

	"github.com/skep-dev/skep/api"
)

// DefaultFile is read when no other file is named, if it exists.
const DefaultFile = "/etc/skep/config.toml"

// EnvPrefix precedes a key's name, in capitals, in the environment.
const EnvPrefix = "SKEP_"

// Config holds every setting. Default returns one that Validate accepts.
type Config struct {
	DataDir    string // images, snapshots, the database
	ResultsDir string // whose directories are of experiments' results, for the page; empty: experiments in DataDir
	RunDir     string // sockets and machines' private directories; emptied by a reboot
	Socket     string // control API; empty: skep.sock in RunDir

	Listen           string   // gateway, TCP
	Domain           string   // <name>.<Domain> reaches a function
	TrustForwarded   []string // addresses, or prefixes of them, of proxies whose X-Forwarded headers count
	ListFunctions    string   // whether the gateway's 404 names the functions: auto (if Listen is a loopback address), yes, no
	MaxBody          int      // MiB of a request's body; 0: no limit
	MaxConnections   int      // of clients to the gateway at once; 0: no limit
	AccessLog        bool     // a line for each request
	ControlListen    string   // control API over TCP; empty: none
	ControlTokenFile string   // bearer token for it
	Address          string   // control API over TCP that the CLI speaks to; empty: Socket
	MetricsListen    string   // /metrics over TCP without a token; empty: on the control API alone

	VMM          string // auto, qemu, firecracker
	Accel        string // auto, kvm, tcg
	QEMU         string // path or name of the QEMU binary; empty: the distribution's
	MemoryPolicy string // of functions that name none; empty: the best there is
	Scaling      string // scaling policy of functions that name none; empty: scale.Default
	Learning     bool   // the stream policy's working sets follow what restores touch
	SampleEvery  int    // one restore in so many holds a sample of its working set back; 0: 16
	KernelDir    string // where `skep setup` puts guest kernels; empty: below the user's cache directory
	Kernel       string // path of a guest kernel; empty: the one in KernelDir
	Modules      string // modules directory of Kernel; empty: none
	CgroupRoot   string // cgroup v2 directory for machines; "auto" looks for one, "none" does without
	ConfineUser  bool   // run each VMM as an unprivileged user of its own
	VMMMemory    int    // MiB that a VMM may use beside its guest's memory; 0: what it needs at most; -1: no limit
	VMMPIDs      int    // processes and threads of a VMM beside its vCPUs'; 0: 128; -1: no limit
	VMMCPUs      int    // CPUs that a VMM may use beside its vCPUs; 0: 1; -1: no limit

	Slots        int      // network slots made ahead
	Shells       int      // VMM processes that wait for cold starts of the functions that were used last
	MaxInstances int      // microVMs at once, all functions together; 0: 256
	MemoryBudget int      // MiB of memory of all machines at once, guests' and VMMs' own; 0: nine tenths of what the host has free when the daemon starts
	NATPool      string   // IPv4 prefix from which slots with egress get addresses
	Nameservers  []string // that functions with egress get; empty: the host's
	HostServices []string // PORT=ADDRESS:PORT: what functions with egress host reach at their gateway's PORT

	StoreBucket     string       // of an S3-compatible object store, for snapshots; empty: none
	StorePrefix     string       // of the keys in it
	StoreEndpoints  []string     // URLs of that store; empty: AWS's
	StoreRegion     string       // empty: what AWS's variables and files say
	StorePush       bool         // push snapshots when they are made
	StoreKeyFile    string       // secret that all in it is encrypted with; empty: nothing is, or StoreKeyCommand's
	StoreKeyCommand string       // run by /bin/sh; prints that secret
	StoreFillRate   int          // MiB a second at which the rest of a snapshot is fetched that is started from; 0: no bound
	StoreCacheMiB   int          // of chunks of that store kept on disk, those used last; 0: none
	StoreWait       api.Duration // that a guest waits for a page from that store before it is ended

	KeepRecords     int          // invocation records kept in all; 0: none
	KeepImages      api.Duration // that nothing needs; 0: for ever
	ImageBudget     int          // MiB that images may take before those that nothing needs go; 0: no bound
	KeepSnapshots   api.Duration // of containers, since their last use; 0: for ever
	SnapshotBudget  int          // MiB that snapshots of containers may take before the longest unused go; 0: a fifth of the file system
	KeepRevisions   int          // versions kept of each function, the one in force among them
	KeepLogMiB      int          // of output kept per function
	DrainTimeout    api.Duration // that running invocations get at shutdown
	Experiments     bool         // requests may choose start kind and policy through the gateway's port
	LogLevel        string       // debug, info, warn, error
	LogFormat       string       // text, json
	OTLPEndpoint    string       // of a collector that spans are sent to; empty: what OpenTelemetry's variables say
	FirecrackerPath string       // path or name of the Firecracker binary
}

// Default returns the settings of a host that nobody has configured.
func Default() Config {
	return Config{
		DataDir:         "/var/lib/skep",
		RunDir:          "/run/skep",
		Listen:          "127.0.0.1:7080",
		Domain:          "localhost",
		ListFunctions:   "auto",
		MaxConnections:  10_000,
		AccessLog:       true,
		VMM:             "auto",
		Accel:           "auto",
		CgroupRoot:      "auto",
		Learning:        true,
		ConfineUser:     true,
		Slots:           4,
		Shells:          8,
		NATPool:         "10.211.0.0/16",
		HostServices:    []string{"7090=127.0.0.1:7090"}, // `skep functions s3`
		StorePush:       true,
		StoreCacheMiB:   1024,
		StoreWait:       api.Duration(30 * time.Second),
		KeepRecords:     100_000,
		KeepImages:      api.Duration(7 * 24 * time.Hour),
		KeepSnapshots:   api.Duration(7 * 24 * time.Hour),
		KeepRevisions:   10,
		KeepLogMiB:      16,
		DrainTimeout:    api.Duration(30 * time.Second),
		LogLevel:        "info",
		LogFormat:       "text",
		FirecrackerPath: "firecracker",
	}
}

// Key is one setting: its name in the file, in the environment and as a flag,
// and where it lives in a Config.
type Key struct {
	Name string // as in the file: data_dir
	Help string // one line
	// field returns a pointer to the setting: *string, *int, *bool,
	// *api.Duration or *[]string.
	field func(*Config) any
}

// Keys lists every setting in the order in which people should read them.
var Keys = []Key{
	{"data_dir", "directory of images, snapshots and the database", func(c *Config) any { return &c.DataDir }},
	{"results_dir", "directory whose directories are experiments' results, which the page shows (default: experiments in data_dir)", func(c *Config) any { return &c.ResultsDir }},
	{"run_dir", "directory of sockets and of running machines", func(c *Config) any { return &c.RunDir }},
	{"socket", "unix socket of the control API (default: skep.sock in run_dir)", func(c *Config) any { return &c.Socket }},
	{"listen", "address of the gateway, where functions are reached", func(c *Config) any { return &c.Listen }},
	{"domain", "a function is reached as http://<name>.<domain>", func(c *Config) any { return &c.Domain }},
	{"trust_forwarded", "addresses or prefixes (10.0.0.0/8) of proxies whose X-Forwarded headers functions get (default: none)", func(c *Config) any { return &c.TrustForwarded }},
	{"list_functions", "whether the gateway names all functions when it finds none: auto (on loopback addresses), yes or no", func(c *Config) any { return &c.ListFunctions }},
	{"max_body_mib", "MiB that a request's body may have (0: no limit)", func(c *Config) any { return &c.MaxBody }},
	{"max_connections", "connections to the gateway at once, where more must wait (0: no limit)", func(c *Config) any { return &c.MaxConnections }},
	{"access_log", "log a line for each request", func(c *Config) any { return &c.AccessLog }},
	{"control_listen", "address of the control API over TCP; needs control_token_file (default: none)", func(c *Config) any { return &c.ControlListen }},
	{"control_token_file", "file that holds the control API's bearer token", func(c *Config) any { return &c.ControlTokenFile }},
	{"address", "control API over TCP that the CLI speaks to (default: the socket)", func(c *Config) any { return &c.Address }},
	{"metrics_listen", "address of /metrics without a token (default: on the control API alone)", func(c *Config) any { return &c.MetricsListen }},
	{"vmm", "virtual machine monitor: auto, qemu or firecracker", func(c *Config) any { return &c.VMM }},
	{"accel", "how guest code runs: auto, kvm or tcg", func(c *Config) any { return &c.Accel }},
	{"qemu", "QEMU binary (default: the distribution's)", func(c *Config) any { return &c.QEMU }},
	{"firecracker", "Firecracker binary (default: on the PATH, or what skep setup firecracker fetched)", func(c *Config) any { return &c.FirecrackerPath }},
	{"memory_policy", "how restored memory is filled, for functions that name no policy (default: the best there is)", func(c *Config) any { return &c.MemoryPolicy }},
	{"scaling", "scaling policy of functions that name none, as kpa or fixed:keep-alive=10m (default: fixed, by each function's keep_alive)", func(c *Config) any { return &c.Scaling }},
	{"memory_learning", "let working sets follow what restores touch, under the stream policy", func(c *Config) any { return &c.Learning }},
	{"memory_sample_every", "one restore in so many holds back a sample of its working set, to find what is no longer touched (0: 16)", func(c *Config) any { return &c.SampleEvery }},
	{"kernel_dir", "where `skep setup` puts guest kernels", func(c *Config) any { return &c.KernelDir }},
	{"kernel", "guest kernel, a bzImage or vmlinux (default: the newest in kernel_dir)", func(c *Config) any { return &c.Kernel }},
	{"kernel_modules", "modules directory of that kernel", func(c *Config) any { return &c.Modules }},
	{"cgroup_root", "cgroup v2 directory for machines: auto, none or a path", func(c *Config) any { return &c.CgroupRoot }},
	{"confine_user", "run each machine as an unprivileged user of its own", func(c *Config) any { return &c.ConfineUser }},
	{"vmm_memory_mib", "MiB that a VMM may use beside its guest's memory, where there is cgroup v2 (0: what it needs at most, -1: no limit)", func(c *Config) any { return &c.VMMMemory }},
	{"vmm_pids", "threads that a VMM may have beside one for each vCPU, where there is cgroup v2 (0: 128, -1: no limit)", func(c *Config) any { return &c.VMMPIDs }},
	{"vmm_cpus", "CPUs that a VMM may use beside its guest's vCPUs, where there is cgroup v2 (0: 1, -1: no limit)", func(c *Config) any { return &c.VMMCPUs }},
	{"slots", "network slots made ahead", func(c *Config) any { return &c.Slots }},
	{"shells", "VMM processes started ahead, for the functions that were used last, and more for those that start in bursts", func(c *Config) any { return &c.Shells }},
	{"max_instances", "machines at once, all functions together (0: 256)", func(c *Config) any { return &c.MaxInstances }},
	{"memory_budget_mib", "MiB of memory of all machines at once, guests' and VMMs' own (0: nine tenths of what is free at the start)", func(c *Config) any { return &c.MemoryBudget }},
	{"nat_pool", "IPv4 prefix for functions with egress nat", func(c *Config) any { return &c.NATPool }},
	{"nameservers", "name servers of functions with egress nat (default: the host's)", func(c *Config) any { return &c.Nameservers }},
	{"host_services", "PORT=ADDRESS:PORT of services on this host that functions with egress host reach, at their gateway's PORT", func(c *Config) any { return &c.HostServices }},
	{"store_bucket", "bucket of an S3-compatible object store that nodes share snapshots through (default: none)", func(c *Config) any { return &c.StoreBucket }},
	{"store_prefix", "prefix of the keys in store_bucket, such as team-a/", func(c *Config) any { return &c.StorePrefix }},
	{"store_endpoints", "URLs of that object store, the next where one does not answer (default: AWS's); credentials are found as AWS's programs do", func(c *Config) any { return &c.StoreEndpoints }},
	{"store_region", "region of that object store (default: what AWS's variables and files say, or us-east-1)", func(c *Config) any { return &c.StoreRegion }},
	{"store_wait", "for how long a guest waits for a page of its memory from the object store before it is ended", func(c *Config) any { return &c.StoreWait }},
	{"store_cache_mib", "MiB of chunks of the object store that are kept on disk, those that were used last, for snapshots that share them (0: none)", func(c *Config) any { return &c.StoreCacheMiB }},
	{"store_fill_rate", "MiB a second at which the rest of a snapshot is fetched that instances start from already; 0: as fast as can be", func(c *Config) any { return &c.StoreFillRate }},
	{"store_push", "push snapshots to the object store when they are made", func(c *Config) any { return &c.StorePush }},
	{"store_key_file", "file with 32 random bytes or more that all in the object store is encrypted with, mode 0600, the same on all nodes (default: it is not encrypted)", func(c *Config) any { return &c.StoreKeyFile }},
	{"store_key_command", "command that prints that key instead, run by /bin/sh when it is needed first, such as one that asks a key service", func(c *Config) any { return &c.StoreKeyCommand }},
	{"keep_records", "invocation records kept in all (0: none)", func(c *Config) any { return &c.KeepRecords }},
	{"keep_images", "time that root disks are kept that no function, snapshot or kept revision needs (0: for ever)", func(c *Config) any { return &c.KeepImages }},
	{"image_budget_mib", "MiB of root disks beyond which those that nothing needs go before their time, the longest unused first (0: no bound)", func(c *Config) any { return &c.ImageBudget }},
	{"keep_snapshots", "time since their last use that snapshots of containers are kept, under containerd (0: for ever)", func(c *Config) any { return &c.KeepSnapshots }},
	{"snapshot_budget_mib", "MiB of snapshots of containers beyond which the longest unused go before their time (0: a fifth of the file system)", func(c *Config) any { return &c.SnapshotBudget }},
	{"keep_revisions", "versions kept of each function, to roll back to", func(c *Config) any { return &c.KeepRevisions }},
	{"keep_log_mib", "MiB of output kept per function", func(c *Config) any { return &c.KeepLogMiB }},
	{"drain_timeout", "time that running invocations get at shutdown", func(c *Config) any { return &c.DrainTimeout }},
	{"experiments", "let requests choose start kind and policy through the gateway's port", func(c *Config) any { return &c.Experiments }},
	{"log_level", "debug, info, warn or error", func(c *Config) any { return &c.LogLevel }},
	{"log_format", "text or json", func(c *Config) any { return &c.LogFormat }},
	{"otlp_endpoint", "collector that spans are sent to, by OTLP over HTTP, such as http://127.0.0.1:4318 (default: what OTEL_EXPORTER_OTLP_ENDPOINT says, else none)", func(c *Config) any { return &c.OTLPEndpoint }},
}

// Find returns the key of that name.
func Find(name string) (Key, bool) {
	for _, k := range Keys {
		if k.Name == name {
			return k, true
		}
	}
	return Key{}, false
}
