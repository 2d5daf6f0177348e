// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

const (
	initName     = "bed-init"
	initVariable = "FAIRLEAD_BED_INIT"
	initReady    = "ready"
)

// initSpec says what a machine's first process does.
type initSpec struct {
	Hostname string
	Dir      string            // the machine's directory on this one
	Boot     string            // the boot id, by which programs know that the machine has been started anew
	Files    map[string]string // below /etc, by name
	Keep     []string          // directories below /var/lib that are on disk; the others are in memory
	DNS      []netip.Addr      // where to answer name queries; empty for nowhere
}

// Init is the whole program when it was started as a machine's first process, and nothing otherwise. Call it before
// anything else.
func Init() {
	text, ok := os.LookupEnv(initVariable)
	if !ok || os.Args[0] != initName {
		return
	}
	runtime.LockOSThread()
	say := os.NewFile(3, "ready")
	if err := setUp(text); err != nil {
		fmt.Fprintln(say, err)
		os.Exit(1)
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	fmt.Fprintln(say, initReady)
	say.Close()
	for range children {
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 && !errors.Is(err, unix.EINTR) {
				break
			}
		}
	}
}

func setUp(text string) error {
	var spec initSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return fmt.Errorf("read what to do: %w", err)
	}
	if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := mounts(spec); err != nil {
		return err
	}
	for name, text := range spec.Files {
		file := filepath.Join("/etc", name)
		os.Remove(file) // it may be a link to what is not here
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return fmt.Errorf("write %s: %w", file, err)
		}
	}
	for _, addr := range spec.DNS {
		if err := serveDNS(addr, spec.DNS); err != nil {
			return err
		}
	}
	return nil
}

// mounter makes mounts until one fails.
type mounter struct{ err error }

func (m *mounter) mount(source, target, kind string, flags uintptr, data string) {
	if m.err == nil {
		if err := unix.Mount(source, target, kind, flags, data); err != nil {
			m.err = fmt.Errorf("mount %s on %s: %w", source, target, err)
		}
	}
}

func (m *mounter) mkdir(dirs ...string) {
	for _, dir := range dirs {
		if m.err == nil {
			m.err = os.MkdirAll(dir, 0o755)
		}
	}
}

// mounts gives the machine its own /proc and /sys, and its own copy of what it writes to. What is built of several mounts is
// built aside and moved, so that what it is built from is not hidden before.
func mounts(spec initSpec) error {
	m := &mounter{}
	m.mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	stage := filepath.Join(spec.Dir, "stage")
	m.mkdir(stage)
	m.mount("tmpfs", stage, "tmpfs", 0, "mode=755")
	in := func(names ...string) string { return filepath.Join(append([]string{stage}, names...)...) }

	m.mkdir(in("lib"), in("cgroup"))
	m.mount("tmpfs", in("lib"), "tmpfs", 0, "mode=755")
	for _, name := range spec.Keep {
		m.mkdir(filepath.Join(spec.Dir, name), in("lib", name))
		m.mount(filepath.Join(spec.Dir, name), in("lib", name), "", unix.MS_BIND, "")
	}
	m.mkdir(filepath.Join(spec.Dir, "log"))
	m.mount(filepath.Join(spec.Dir, "log"), "/var/log", "", unix.MS_BIND, "")
	for _, dir := range []string{"etc", "opt"} {
		if _, err := os.Stat("/" + dir); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		m.mkdir(in(dir, "upper"), in(dir, "work"))
		m.mount("overlay", "/"+dir, "overlay", 0, fmt.Sprintf("lowerdir=/%s,upperdir=%s,workdir=%s", dir, in(dir, "upper"), in(dir, "work")))
	}
	// The first network namespace's /sys would show; the control groups are the machine's own ones everywhere.
	m.mount("/sys/fs/cgroup", in("cgroup"), "", unix.MS_BIND|unix.MS_REC, "")
	m.mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	m.mount(in("cgroup"), "/sys/fs/cgroup", "", unix.MS_MOVE, "")
	if _, err := os.Stat("/sys/fs/bpf"); err == nil {
		m.mount("bpf", "/sys/fs/bpf", "bpf", 0, "mode=700")
	}
	m.mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	m.pretendSysctls(in("sysctl"), kubeletSysctls)
	m.pretendSysctls(in("sysctl"), map[string]string{"kernel/random/boot_id": spec.Boot})
	m.mount(in("lib"), "/var/lib", "", unix.MS_MOVE, "")
	m.mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755")
	m.mkdir("/run/netns", "/run/lock")
	m.mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
	return m.err
}

// kubeletSysctls are the settings of the whole kernel that a kubelet makes. It finds them made, and so leaves those of this
// machine alone.
var kubeletSysctls = map[string]string{
	"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

func (m *mounter) pretendSysctls(dir string, sysctls map[string]string) {
	m.mkdir(dir)
	for key, value := range sysctls {
		file, target := filepath.Join(dir, filepath.Base(key)), filepath.Join("/proc/sys", key)
		if _, err := os.Stat(target); err != nil || m.err != nil {
			continue // a kernel without it
		}
		if m.err = os.WriteFile(file, []byte(value+"\n"), 0o644); m.err == nil {
			m.mount(file, target, "", unix.MS_BIND, "")
		}
	}
}

// OutsideName is the only name outside the cluster that there is. It has the fabric's addresses.
const OutsideName = "outside.test."

// serveDNS denies every name but [OutsideName], on one address.
func serveDNS(on netip.Addr, outside []netip.Addr) error {
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		answer := new(dns.Msg).SetReply(q)
		answer.RecursionAvailable = true
		if len(q.Question) != 1 || dns.CanonicalName(q.Question[0].Name) != OutsideName {
			answer.Rcode = dns.RcodeNameError
		} else {
			for _, a := range outside {
				header := dns.RR_Header{Name: q.Question[0].Name, Class: dns.ClassINET, Ttl: 5}
				switch {
				case a.Is4() && q.Question[0].Qtype == dns.TypeA:
					header.Rrtype = dns.TypeA
					answer.Answer = append(answer.Answer, &dns.A{Hdr: header, A: a.AsSlice()})
				case a.Is6() && q.Question[0].Qtype == dns.TypeAAAA:
					header.Rrtype = dns.TypeAAAA
					answer.Answer = append(answer.Answer, &dns.AAAA{Hdr: header, AAAA: a.AsSlice()})
				}
			}
		}
		_ = w.WriteMsg(answer) // who asked asks again
	})
	address := netip.AddrPortFrom(on, 53)
	packets, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(address))
	if err != nil {
		return fmt.Errorf("answer names: %w", err)
	}
	listener, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(address))
	if err != nil {
		return fmt.Errorf("answer names: %w", err)
	}
	go func() { _ = (&dns.Server{PacketConn: packets, Handler: handler}).ActivateAndServe() }()
	go func() { _ = (&dns.Server{Listener: listener, Handler: handler}).ActivateAndServe() }()
	return nil
}
