// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/cluster"
	"github.com/fairlead/fairlead/lab/pause"
	"github.com/fairlead/fairlead/linux"
)

// host is what making sandboxes on one node needs.
type host struct {
	dir     cluster.Dir
	node    cluster.NodeDir
	name    string
	params  cluster.Params
	addrs   []netip.Addr // the node's
	netns   *linux.NetNS // the node's
	network *network
	group   cluster.ControlGroup // the node's
	pause   string               // path of the program that has the pause command

	creating chan struct{} // its capacity bounds how many sandboxes are made at once; the runner makes it
}

// path is the PATH of the node's processes: the machine's usual one, and where the project's own programs are.
func (h *host) path() string { return defaultPath + ":" + filepath.Dir(h.pause) }

// sandbox is a pod's network namespace and its first process. It does not change after it was made.
type sandbox struct {
	host   *host
	att    attachment
	addrs  []netip.Addr
	group  cluster.ControlGroup
	proc   *os.Process
	pidfd  *os.File
	dead   chan struct{} // closed when the first process has ended, and all others of the pod with it
	shared bool          // the pod uses the node's network namespace
}

// inGroup are the attributes of a process that starts in a control group and a session of its own.
func inGroup(g *os.File) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(g.Fd())}
}

// newSandbox makes a pod's sandbox; attempt tells those of one pod apart. On an error nothing is left of it.
func (h *host) newSandbox(ctx context.Context, pod *corev1.Pod, attempt int) (*sandbox, error) {
	s := &sandbox{
		host:   h,
		group:  h.podGroup(pod),
		dead:   make(chan struct{}),
		shared: pod.Spec.HostNetwork,
		att: attachment{
			id: string(pod.UID) + "-" + strconv.Itoa(attempt), netns: h.dir.PodNetns(string(pod.UID)),
			namespace: pod.Namespace, name: pod.Name, uid: string(pod.UID),
		},
	}
	if err := s.make(ctx, pod); err != nil {
		// The caller's context may be what ended; the way back must not.
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
		defer cancel()
		return nil, errors.Join(err, s.remove(back))
	}
	return s, nil
}

// removeTimeout bounds the removal of a sandbox.
const removeTimeout = 30 * time.Second

func (h *host) podGroup(pod *corev1.Pod) cluster.ControlGroup {
	return h.group.Child("pods", string(pod.UID))
}

func (s *sandbox) make(ctx context.Context, pod *corev1.Pod) error {
	if err := s.group.Child("pause").Make(); err != nil {
		return err
	}
	netns, err := s.network(ctx)
	if err != nil {
		return err
	}
	if !s.shared {
		defer netns.Close()
	}
	spec, err := s.files(pod)
	if err != nil {
		return err
	}
	return s.start(ctx, netns, spec)
}

// network makes the pod's network namespace and wires it, or takes the node's.
func (s *sandbox) network(ctx context.Context) (*linux.NetNS, error) {
	if s.shared {
		s.addrs = s.host.addrs
		return s.host.netns, nil
	}
	netns, err := linux.NewNetNS()
	if err != nil {
		return nil, err
	}
	if err := netns.Bind(s.att.netns); err != nil {
		netns.Close()
		return nil, err
	}
	if s.addrs, err = s.host.network.add(ctx, s.att); err != nil {
		netns.Close()
		return nil, err
	}
	return netns, nil
}

// files writes the pod's own resolv.conf, hosts, hostname and nsswitch.conf, and says what the first process is to do with them.
func (s *sandbox) files(pod *corev1.Pod) (pause.Spec, error) {
	h := s.host
	short, _ := podHostname(pod, h.params.Domain)
	resolv, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return pause.Spec{}, fmt.Errorf("process pods need /etc/resolv.conf to exist on the machine: %w", err)
	}
	nsswitch, _ := os.ReadFile("/etc/nsswitch.conf")
	dir := h.node.Pod(string(pod.UID))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return pause.Spec{}, fmt.Errorf("make pod directory: %w", err)
	}
	spec := pause.Spec{Hostname: short, Unmount: []string{h.dir.Netns()}, Binds: map[string]string{}}
	for _, f := range []struct{ name, text string }{
		{"resolv.conf", podResolver(pod, string(resolv), h.params.Domain, h.params.DNSAddrs()).String()},
		{"hosts", podHosts(pod, h.params.Domain, s.addrs)},
		{"hostname", short + "\n"},
		{"nsswitch.conf", podNsswitch(string(nsswitch))},
	} {
		path, target := filepath.Join(dir, f.name), filepath.Join("/etc", f.name)
		if _, err := os.Stat(target); err != nil {
			continue // a machine without the file: there is nothing to put the pod's own over
		}
		if err := os.WriteFile(path, []byte(f.text), 0o644); err != nil {
			return pause.Spec{}, fmt.Errorf("write pod's %s: %w", f.name, err)
		}
		spec.Binds[target] = path
	}
	for _, dir := range nameCaches {
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			spec.Empty = append(spec.Empty, dir)
		}
	}
	return spec, nil
}

// nameCaches are directories with sockets of services that would answer a pod's name lookups from outside of its network.
var nameCaches = []string{"/run/nscd", "/run/systemd/resolve"}

// start starts the pod's first process and waits until it has set its namespaces up.
func (s *sandbox) start(ctx context.Context, netns *linux.NetNS, spec pause.Spec) error {
	text, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("start sandbox: %w", err)
	}
	group, err := s.group.Child("pause").Open()
	if err != nil {
		return err
	}
	defer group.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("start sandbox: %w", err)
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start sandbox: %w", err)
	}
	defer r.Close()
	pidfd := -1
	attr := inGroup(group)
	attr.Cloneflags = unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC
	attr.PidFD = &pidfd
	err = netns.Do(func() (err error) {
		s.proc, err = os.StartProcess(s.host.pause, []string{"fairlead", "pause", s.att.namespace + "/" + s.att.name}, &os.ProcAttr{
			Dir: "/", Files: []*os.File{null, null, null, w}, Sys: attr,
			// One processor is enough for a process that sleeps, and saves the memory of the others.
			Env: []string{pause.Variable + "=" + string(text), "GOMAXPROCS=1", "GOTRACEBACK=none"},
		})
		return err
	})
	w.Close()
	if err != nil {
		return fmt.Errorf("start sandbox: %w", err)
	}
	s.pidfd = os.NewFile(uintptr(pidfd), "pidfd")
	go func() {
		s.proc.Wait()
		close(s.dead)
	}()
	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	answer, err := io.ReadAll(io.LimitReader(r, 4096))
	switch said := strings.TrimSpace(string(answer)); {
	case ctx.Err() != nil:
		return fmt.Errorf("start sandbox: %w", ctx.Err())
	case said == "ok":
		return nil
	case said == "":
		return fmt.Errorf("start sandbox: %s ended before it was ready", s.host.pause)
	default:
		return fmt.Errorf("start sandbox: %s", said)
	}
}

// remove kills what is left of the pod and gives its network back. It may be called again after an error.
func (s *sandbox) remove(ctx context.Context) error {
	var errs []error
	if err := s.group.Remove(10 * time.Second); err != nil {
		errs = append(errs, err)
	}
	if s.pidfd != nil {
		<-s.dead
	}
	if !s.shared {
		// Without a configuration there is no plugin to ask; the namespace's end takes the interfaces with it.
		if err := s.host.network.del(ctx, s.att); err != nil && !errors.Is(err, errNoCNI) {
			errs = append(errs, fmt.Errorf("unwire pod: %w", err))
		}
		if err := linux.Unbind(s.att.netns); err != nil {
			errs = append(errs, err)
		}
	}
	if s.pidfd != nil {
		s.pidfd.Close()
	}
	return errors.Join(errs...)
}

// alive says whether the sandbox can take containers.
func (s *sandbox) alive() bool {
	select {
	case <-s.dead:
		return false
	default:
		return true
	}
}

// deathTime is how long a failed start waits for the news that the sandbox has died.
const deathTime = time.Second

// dies says whether a process could not be started because the sandbox is at its end. When the first process is killed the kernel ends all others
// before it, so the end of a container is known before that of the sandbox; what is started in between fails as if there were no memory, or no
// such process.
func (s *sandbox) dies(err error) bool {
	if !s.alive() {
		return true
	}
	if !errors.Is(err, unix.ENOMEM) && !errors.Is(err, unix.ESRCH) {
		return false
	}
	select {
	case <-s.dead:
		return true
	case <-time.After(deathTime):
		return false
	}
}

// run starts a process in the pod.
func (s *sandbox) run(c command) (*os.Process, error) {
	if !s.alive() {
		return nil, errors.New("the pod's first process has ended")
	}
	return startIn(int(s.pidfd.Fd()), c)
}
