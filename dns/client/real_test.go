// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bufio"
	"context"
	"fmt"
	"hash/fnv"
	"hash/maphash"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/testnet"
)

// lookUp, if set in the environment, makes the test's program look names up with Go's resolver instead of testing.
const lookUp = "FAIRLEAD_TEST_LOOK_UP"

func TestMain(m *testing.M) {
	network := os.Getenv(lookUp)
	if network == "" {
		os.Exit(m.Run())
	}
	r := net.Resolver{PreferGo: true}
	for _, name := range os.Args[1:] {
		found, _ := r.LookupNetIP(context.Background(), network, name)
		for _, a := range found {
			fmt.Println(a)
		}
	}
}

// address is the address that a model's word for one stands for.
func address(word string) netip.Addr {
	h := fnv.New32a()
	h.Write([]byte(word))
	sum := h.Sum32()
	if strings.HasSuffix(word, ".28") {
		return netip.MustParseAddr(fmt.Sprintf("2001:db8::%x:%x", sum>>16, sum&0xffff))
	}
	return netip.AddrFrom4([4]byte{203, byte(sum >> 16), byte(sum >> 8), byte(sum)})
}

// judge serves a world to real resolvers, in a network of its own.
type judge struct {
	host *testnet.Host
	conf string // the resolv.conf

	mu    sync.Mutex
	reply func(name string, qtype uint16) (reply, string) // and the name that answers
	asked map[string]bool
}

func newJudge(t *testing.T) *judge {
	j := &judge{host: testnet.New(t).Host("pod"), conf: filepath.Join(t.TempDir(), "resolv.conf")}
	var conn net.PacketConn
	j.host.Do(func() (err error) {
		conn, err = net.ListenPacket("udp", "127.0.0.1:53")
		return err
	})
	server := &mdns.Server{PacketConn: conn, Handler: mdns.HandlerFunc(j.serve)}
	done := make(chan error, 1)
	go func() { done <- server.ActivateAndServe() }()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return j
}

func (j *judge) serve(w mdns.ResponseWriter, req *mdns.Msg) {
	j.mu.Lock()
	q := req.Question[0]
	name := strings.ToLower(q.Name)
	r, answers := j.reply(name, q.Qtype)
	j.asked[fmt.Sprint(name, q.Qtype)] = true
	j.mu.Unlock()
	m := new(mdns.Msg).SetRcode(req, r.rcode)
	m.RecursionAvailable = true
	owner := q.Name
	alias := func(to string) {
		m.Answer = append(m.Answer, &mdns.CNAME{Hdr: mdns.RR_Header{Name: owner, Rrtype: mdns.TypeCNAME, Class: mdns.ClassINET, Ttl: 1}, Target: to})
		owner = to
	}
	if answers != name {
		alias(answers)
	}
	if r.records && len(r.addrs) == 0 {
		alias("alias.of." + answers)
	}
	for _, word := range r.addrs {
		a := address(word)
		hdr := mdns.RR_Header{Name: owner, Rrtype: q.Qtype, Class: mdns.ClassINET, Ttl: 1}
		if a.Is4() {
			m.Answer = append(m.Answer, &mdns.A{Hdr: hdr, A: a.AsSlice()})
		} else {
			m.Answer = append(m.Answer, &mdns.AAAA{Hdr: hdr, AAAA: a.AsSlice()})
		}
	}
	w.WriteMsg(m)
}

// run has a program look names up and returns the addresses it prints, one first on each line, and what it asked for.
func (j *judge) run(t *testing.T, l lookup, answer func(name string, qtype uint16) (reply, string), env string, args ...string) (addrs, asked []string) {
	t.Helper()
	text := "nameserver 127.0.0.1\nsearch " + strings.Join(l.list, " ") + fmt.Sprintf("\noptions ndots:%d timeout:1 attempts:1\n", l.ndots)
	if err := os.WriteFile(j.conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	j.mu.Lock()
	j.reply, j.asked = answer, make(map[string]bool)
	j.mu.Unlock()
	cmd := exec.Command("sh", append([]string{"-c", `mount --bind "$0" /etc/resolv.conf && exec "$@"`, j.conf}, args...)...)
	cmd.Env = append(os.Environ(), env)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	var out []byte
	j.host.Do(func() error {
		out, _ = cmd.Output() // a name that is not found makes some programs fail
		return nil
	})
	found := make(map[string]bool)
	for lines := bufio.NewScanner(strings.NewReader(string(out))); lines.Scan(); {
		word, _, _ := strings.Cut(lines.Text(), " ")
		found[word] = true
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Sorted(maps.Keys(found)), slices.Sorted(maps.Keys(j.asked))
}

// TestRealResolvers: the resolvers of this machine ask what their models ask, and find the same, whether the server completes or not.
func TestRealResolvers(t *testing.T) {
	testnet.MustRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	type real struct {
		model func(lookup) result
		types []uint16
		env   string
		args  []string
	}
	families := map[string][]uint16{"0": {mdns.TypeA, mdns.TypeAAAA}, "4": {mdns.TypeA}, "6": {mdns.TypeAAAA}}
	resolvers := map[string]real{}
	for f, types := range families {
		resolvers["Go "+f] = real{golang, types, lookUp + "=ip" + strings.TrimPrefix(f, "0"), []string{self}}
	}
	// The C libraries are judges where a program can be made for them.
	for compiler, model := range map[string]func(lookup) result{"gcc": glibc, "musl-gcc": musl12} {
		program := filepath.Join(t.TempDir(), compiler)
		if out, err := exec.Command(compiler, "-o", program, "testdata/lookup.c").CombinedOutput(); err != nil {
			t.Logf("%s is no judge: %v %s", compiler, err, out)
			continue
		}
		for f, types := range families {
			resolvers[compiler+" "+f] = real{model, types, "", []string{program, f}}
		}
	}
	r := random(t)
	j := newJudge(t)
	seen := map[string]int{}
	for i := range 25 {
		// musl waits for better answers than failures until its time is up, which makes them dear.
		w := names{seed: maphash.MakeSeed(), suppress: r.IntN(3) == 0, sound: i != 0}
		var node []string
		if r.IntN(2) == 0 {
			node = []string{"corp.example"}
		}
		p := newTestPod(nil, node...)
		l := lookup{ndots: p.search.ndots, name: []string{"a.b", "www.example.com", "a.b.c.d"}[r.IntN(3)]}
		for _, s := range p.search.suffixes {
			l.list = append(l.list, strings.Trim(s, "."))
		}
		plain := func(name string, qtype uint16) (reply, string) { r, _ := w.there(name, qtype); return r, name }
		completed := func(name string, qtype uint16) (reply, string) { return w.completed(p, name, qtype) }
		for name, real := range resolvers {
			if l.types = real.types; !w.sound && name != "musl-gcc 0" && strings.HasPrefix(name, "musl") {
				continue
			}
			for how, answer := range map[string]func(string, uint16) (reply, string){"plain": plain, "completed": completed} {
				want := map[string]bool{}
				l.ask = func(name string, qtype uint16) reply {
					r, _ := answer(name, qtype)
					want[fmt.Sprint(name, qtype)] = true
					return r
				}
				var wanted []string
				for _, a := range real.model(l).addrs {
					wanted = append(wanted, address(a).String())
				}
				seen[name] += len(wanted)
				slices.Sort(wanted)
				addrs, asked := j.run(t, l, answer, real.env, append(real.args, l.name)...)
				if !slices.Equal(addrs, wanted) {
					t.Fatalf("%s, %s: %s is %v, by the model %v\nasked %v", name, how, l.name, addrs, wanted, asked)
				}
				if wanted := slices.Sorted(maps.Keys(want)); !slices.Equal(asked, wanted) {
					t.Fatalf("%s, %s, for %s\nasked %v\nmodel %v", name, how, l.name, asked, wanted)
				}
			}
		}
	}
	for name := range resolvers {
		if seen[name] == 0 {
			t.Errorf("%s found nothing", name)
		}
	}
}
