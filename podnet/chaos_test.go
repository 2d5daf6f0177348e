// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/ipam"
)

// machine starts programs that take it for one with a boot of its own: a thread in a mount namespace where boot_id is a file that the test writes.
type machine struct {
	work chan func()
	boot string // the file
}

func newMachine(t testing.TB) *machine {
	m := &machine{work: make(chan func()), boot: filepath.Join(t.TempDir(), "boot_id")}
	m.reboot(t)
	ready, ended := make(chan error), make(chan bool)
	go func() { m.run(ready); close(ended) }()
	t.Cleanup(func() { close(m.work); <-ended })
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	return m
}

// run is the thread. It must not be the first one, which lends its namespaces to /proc/self.
func (m *machine) run(ready chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		ended := make(chan bool)
		go func() { m.run(ready); close(ended) }() // on another thread, as this one is busy waiting
		<-ended
		runtime.UnlockOSThread()
		return
	}
	// It is never unlocked: the thread and its namespaces end with it.
	err := unix.Unshare(unix.CLONE_NEWNS)
	if err == nil {
		err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	}
	if err == nil {
		err = unix.Mount(m.boot, "/proc/sys/kernel/random/boot_id", "", unix.MS_BIND, "")
	}
	ready <- err
	for f := range m.work {
		f()
	}
}

// reboot gives the machine another boot ID.
func (m *machine) reboot(t testing.TB) {
	if err := os.WriteFile(m.boot, fmt.Appendf(nil, "%016x\n", rand.Uint64()), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) do(f func() error) error {
	done := make(chan error)
	m.work <- func() { done <- f() }
	return <-done
}

// container is what the runtime of the test knows of one. Only one worker at a time has it.
type container struct {
	*pod
	state string // "up" after an ADD that ended well, "down" after such a DEL, "?" after one that was killed
	addrs []netip.Addr
	last  *types100.Result
}

// chaos is a node, its machine and its containers.
type chaos struct {
	*node
	machine *machine
	clean   string // what the kernel has without pods
	now     []*container
	all     map[string]bool // every container ID that there has been
	next    int

	mu     sync.Mutex
	owners map[netip.Addr]string // of containers that are up
	did    map[string]int
}

// TestChaos is a runtime at its worst: verbs in the wrong order, twice and at once, killed at random moments, for containers that are gone, with reboots
// between. An address has never two containers that are up; what ended well is there, and stays there whatever befalls the others; and when every container
// has got its DEL, nothing is left in the kernel or on disk. FAIRLEAD_OPERATIONS=1000 does more.
func TestChaos(t *testing.T) {
	operations := 240
	if n, err := strconv.Atoi(os.Getenv("FAIRLEAD_OPERATIONS")); err == nil {
		operations = n
	}
	seed := uint64(time.Now().UnixNano())
	if n, err := strconv.ParseUint(os.Getenv("FAIRLEAD_SEED"), 10, 64); err == nil {
		seed = n
	}
	t.Logf("%d operations, FAIRLEAD_SEED=%d", operations, seed)
	random := rand.New(rand.NewPCG(seed, 0))
	const workers, each = 4, 8 // operations of a worker between two looks at everything
	c := &chaos{node: newNode(t, "10.244.1.0/26", "fd00:244:0:1::/64"), machine: newMachine(t), all: map[string]bool{},
		owners: map[netip.Addr]string{}, did: map[string]int{}}
	c.clean = c.everything()
	var events []int // what comes between, each as often as the others
	for done := 0; done < operations; done += workers * each {
		for len(c.now) < 10 {
			c.next++
			id := fmt.Sprint("c", c.next)
			c.now, c.all[id] = append(c.now, &container{pod: c.pod(id), state: "down"}), true
		}
		var running sync.WaitGroup
		for w := range workers {
			var mine []*container
			for i := w; i < len(c.now); i += workers {
				mine = append(mine, c.now[i])
			}
			own := rand.New(rand.NewPCG(random.Uint64(), 0))
			running.Go(func() {
				for range each {
					c.operate(own, mine[own.IntN(len(mine))])
				}
			})
		}
		running.Wait()
		c.look()
		if len(events) == 0 {
			events = random.Perm(4)
		}
		event := events[0]
		events = events[1:]
		switch event {
		case 0:
			c.collect()
		case 1:
			c.restart(random)
		case 2: // some containers end as they do when the runtime dies: their namespace goes, and DEL comes late or never
			for _, victim := range c.now[:3] {
				c.gone(victim)
			}
			c.now = c.now[3:]
		}
	}
	for _, victim := range c.now {
		c.gone(victim)
	}
	for _, id := range slices.Sorted(maps.Keys(c.all)) {
		if _, err := c.exec("DEL", &container{pod: &pod{id: id}}, 0); err != nil {
			t.Errorf("last DEL of %s: %v", id, err)
		}
	}
	c.now = nil
	c.look()
	if got := c.everything(); got != c.clean {
		t.Errorf("left in the kernel:\n%s\nwant\n%s", got, c.clean)
	}
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, e := range entries {
		files = append(files, e.Name())
	}
	if fmt.Sprint(files) != "[leases lock]" {
		t.Errorf("files %v", files)
	}
	t.Logf("%d containers; %v", len(c.all), c.did)
	for _, what := range []string{"ADD", "DEL", "ADD killed", "DEL killed", "reboot", "GC", "ADD twice", "ADD beside DEL"} {
		if c.did[what] == 0 && operations >= 200 {
			t.Errorf("there was no %s", what)
		}
	}
}

func (c *chaos) count(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.did[what]++
}

// operate does one thing to a container, or two at once.
func (c *chaos) operate(random *rand.Rand, p *container) {
	kill := time.Duration(0)
	if random.IntN(3) == 0 {
		kill = time.Duration(1+random.IntN(9000)) * time.Microsecond
	}
	switch random.IntN(8) {
	case 0, 1, 2:
		c.add(p, kill)
	case 3, 4:
		c.del(p, kill)
	case 5:
		c.count("ADD twice")
		c.forget(p)
		var both sync.WaitGroup
		both.Go(func() { c.exec("ADD", p, kill) })
		c.exec("ADD", p, 0)
		both.Wait()
		p.state = "?"
		c.add(p, 0)
	case 6:
		c.count("ADD beside DEL")
		c.forget(p)
		var both sync.WaitGroup
		both.Go(func() { c.exec("DEL", p, kill) })
		c.exec("ADD", p, 0)
		both.Wait()
		p.state = "?"
		c.del(p, 0)
	case 7:
		c.forget(p)
		p.state = "?"
		var both sync.WaitGroup
		both.Go(func() { c.exec("DEL", p, 0) })
		c.exec("DEL", p, kill)
		both.Wait()
		c.del(p, 0)
		c.del(p, 0)
	}
}

func (c *chaos) add(p *container, kill time.Duration) {
	out, err := c.exec("ADD", p, kill)
	if err != nil {
		if said := (*types.Error)(nil); kill == 0 || errors.As(err, &said) {
			c.t.Errorf("ADD %s: %v", p.id, err)
		}
		c.forget(p)
		p.state = "?"
		return
	}
	result, err := parseResult(out)
	if err != nil {
		c.t.Errorf("ADD %s: %v", p.id, err)
		return
	}
	was := p.addrs
	c.mu.Lock()
	defer c.mu.Unlock()
	p.last, p.addrs = result, addrs(result)
	if p.state == "up" && !slices.Equal(was, p.addrs) {
		c.t.Errorf("ADD %s again gave %v, before %v", p.id, p.addrs, was)
	}
	p.state = "up"
	for _, addr := range p.addrs {
		if other := c.owners[addr]; other != "" && other != p.id {
			c.t.Errorf("%s given to %s, and %s has it", addr, p.id, other)
		}
		c.owners[addr] = p.id
	}
}

// forget expects nothing of a container any more.
func (c *chaos) forget(p *container) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, addr := range p.addrs {
		if c.owners[addr] == p.id {
			delete(c.owners, addr)
		}
	}
	p.addrs = nil
}

func (c *chaos) del(p *container, kill time.Duration) {
	c.forget(p)
	p.state = "down"
	if _, err := c.exec("DEL", p, kill); err != nil {
		p.state = "?"
		if said := (*types.Error)(nil); kill == 0 || errors.As(err, &said) {
			c.t.Errorf("DEL %s: %v", p.id, err)
		}
	}
}

// exec runs a verb, and kills it after some time unless that is 0.
func (c *chaos) exec(verb string, p *container, kill time.Duration) ([]byte, error) {
	conf := c.conf
	if verb == "CHECK" {
		conf = with(conf, "prevResult", p.last)
	}
	return c.finish(c.command(verb, p.pod, conf), verb, kill)
}

func (c *chaos) finish(cmd *exec.Cmd, verb string, kill time.Duration) ([]byte, error) {
	cmd.Path, cmd.Args = shippedPlugin(c.t), []string{"fairlead"}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := c.machine.do(func() error {
		if err := unix.Setns(c.NS.Fd(), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return cmd.Start()
	})
	if err != nil {
		return nil, err
	}
	if kill > 0 {
		timer := time.AfterFunc(kill, func() { cmd.Process.Kill() })
		defer timer.Stop()
	}
	err = cmd.Wait()
	c.count(verb)
	if err == nil {
		return stdout.Bytes(), nil
	}
	if !cmd.ProcessState.Exited() {
		c.count(verb + " killed")
	}
	var said types.Error
	if json.Unmarshal(stdout.Bytes(), &said) == nil && said.Msg != "" {
		return nil, &said
	}
	return nil, fmt.Errorf("%w: %s%s", err, &stdout, &stderr)
}

func with(m map[string]any, key string, value any) map[string]any {
	m = maps.Clone(m)
	m[key] = value
	return m
}

// leases reads the lease file as a program of this boot does.
func (c *chaos) leases() (leases []ipam.Lease) {
	c.t.Helper()
	err := c.machine.do(func() (err error) {
		leases, err = ListAttachments(c.dir)
		return err
	})
	if err != nil {
		c.t.Errorf("leases: %v", err)
	}
	return leases
}

// look compares what there is with what the runtime was told, while nothing happens.
func (c *chaos) look() {
	c.t.Helper()
	held := map[netip.Addr]string{}
	known := map[string]*container{}
	for _, p := range c.now {
		known[hostName(p.id, "eth0")] = p
	}
	leased := map[string]bool{}
	for _, l := range c.leases() {
		leased[l.ID] = true
		for _, addr := range l.Addrs {
			if held[addr] != "" {
				c.t.Errorf("%s leased to %s and %s", addr, held[addr], l.ID)
			}
			held[addr] = l.ID
		}
	}
	for _, p := range c.now {
		id := hostName(p.id, "eth0")
		links, err := p.Link.LinkList()
		if err != nil {
			c.t.Fatal(err)
		}
		switch p.state {
		case "up":
			for _, addr := range p.addrs {
				if held[addr] != id {
					c.t.Errorf("%s of %s is leased to %q", addr, p.id, held[addr])
				}
			}
			if _, err := c.exec("CHECK", p, 0); err != nil {
				c.t.Errorf("CHECK of %s: %v", p.id, err)
			}
		case "down":
			if leased[id] || len(links) != 1 {
				c.t.Errorf("%s is down: leased %v, %d interfaces", p.id, leased[id], len(links))
			}
		}
	}
	ends, err := c.Link.LinkList()
	if err != nil {
		c.t.Fatal(err)
	}
	for _, link := range ends {
		if name := link.Attrs().Name; isHostName(name) && !leased[name] {
			c.t.Errorf("interface %s (of a container we know: %v) has no lease", name, known[name] != nil)
		}
	}
}

// collect is GC with every container that is up.
func (c *chaos) collect() {
	c.t.Helper()
	valid := []any{}
	for _, p := range c.now {
		if p.state == "up" {
			valid = append(valid, map[string]any{"containerID": p.id, "ifname": "eth0"})
		} else {
			p.state = "down"
		}
	}
	conf := with(c.conf, "cni.dev/valid-attachments", valid)
	if _, err := c.finish(c.command("GC", nil, conf), "GC", 0); err != nil {
		c.t.Errorf("GC: %v", err)
	}
	c.look()
	if n := len(c.leases()); n != len(valid) {
		c.t.Errorf("%d leases after GC of %d containers", n, len(valid))
	}
}

// gone ends a container without a word.
func (c *chaos) gone(p *container) {
	c.forget(p)
	p.NS.Close()
	p.Link.Close()
}

// restart is a reboot: the kernel has nothing any more, the disk has everything. Sometimes the runtime ends the old containers first, and sometimes it
// has no time for that.
func (c *chaos) restart(random *rand.Rand) {
	c.t.Helper()
	c.count("reboot")
	for _, p := range c.now {
		c.gone(p)
	}
	c.NS.Close()
	c.Link.Close()
	c.machine.reboot(c.t)
	c.boot()
	if random.IntN(2) == 0 {
		for _, p := range c.now {
			if _, err := c.exec("DEL", &container{pod: &pod{id: p.id}}, 0); err != nil {
				c.t.Errorf("DEL of %s after a reboot: %v", p.id, err)
			}
		}
	}
	c.now = nil
	if n := len(c.leases()); n != 0 {
		c.t.Errorf("%d leases after a reboot", n)
	}
	c.clean = c.everything()
}

// everything prints what there is in the node's kernel that a plugin could have made.
func (c *chaos) everything() string {
	c.t.Helper()
	eth0 := c.Index("eth0")
	var lines []string
	line := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	links, err := c.Link.LinkList()
	if err != nil {
		c.t.Fatal(err)
	}
	for _, link := range links {
		line("link %s", link.Attrs().Name)
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := c.Link.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			c.t.Fatal(err)
		}
		for _, r := range routes {
			if r.Protocol == unix.RTPROT_KERNEL && r.LinkIndex == eth0 { // which for IPv6 the kernel makes some time after the address
				continue
			}
			line("route %v table %d protocol %d", r.Dst, r.Table, r.Protocol)
		}
		rules, err := c.Link.RuleList(family)
		if err != nil {
			c.t.Fatal(err)
		}
		for _, r := range rules {
			line("rule %s", r)
		}
		neighs, err := c.Link.NeighList(0, family)
		if err != nil {
			c.t.Fatal(err)
		}
		for _, n := range neighs {
			if n.State == netlink.NUD_PERMANENT {
				line("neighbour %s", n.IP)
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
