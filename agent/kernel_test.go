// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/fairlead/fairlead/config"
	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/testnet"
)

// The times are set in the node's own namespace. The number of connections is the machine's: where it is too small and cannot be written, the error says so,
// and the times are set all the same.
func TestLimitConnections(t *testing.T) {
	testnet.MustRoot(t)
	node := testnet.New(t).Host("n1")
	read := func(name string) (value string) {
		node.Do(func() (err error) { value, err = linux.ReadSysctl("net/netfilter/nf_conntrack_" + name); return err })
		return value
	}
	limit := func(c config.Conntrack) (err error) {
		node.Do(func() error { err = limitConnections(c); return nil })
		return err
	}
	before := read("udp_timeout")
	if err := limit(config.Conntrack{Established: time.Hour, CloseWait: 2 * time.Minute, UDPStream: 7 * time.Second, Liberal: true}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"tcp_timeout_established": "3600", "tcp_timeout_close_wait": "120", "udp_timeout_stream": "7",
		"tcp_be_liberal": "1", "udp_timeout": before} {
		if got := read(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	if err := limit(config.Conntrack{MaxPerCore: 1}); err != nil {
		t.Errorf("fewer than there are: %v", err)
	}
	err := limit(config.Conntrack{MaxPerCore: 1, Min: 1 << 30, CloseWait: 3 * time.Minute})
	if err == nil || !strings.Contains(err.Error(), "net/netfilter/nf_conntrack_max=1073741824") {
		t.Errorf("more than the machine has: %v", err)
	}
	if got := read("tcp_timeout_close_wait"); got != "180" {
		t.Errorf("after an error the times are not set: %s", got)
	}
}

// The limits wait for the first rules, and are another program's where that is the service proxy.
func TestLimitWaitsForRules(t *testing.T) {
	testnet.MustRoot(t)
	world := testnet.New(t)
	snap := model.NewBuilder(model.Config{Self: "n1"}).Build()
	for i, tt := range []struct {
		left  model.Roles
		rules bool
		set   bool
	}{{0, false, false}, {0, true, true}, {model.Network, true, true}, {model.Proxy, true, false}} {
		node := world.Host(fmt.Sprint("n", i))
		n := &Node{cfg: &config.Agent{Left: tt.left, Conntrack: config.Conntrack{CloseWait: 77 * time.Second}}, state: NewState(), log: slog.New(slog.DiscardHandler)}
		if tt.rules {
			n.state.acknowledge(snap, 0)
		}
		ctx, cancel := context.WithCancel(t.Context())
		if !tt.rules {
			cancel() // or it would wait
		}
		var value string
		node.Do(func() (err error) {
			if err := n.limit(ctx); err != nil {
				return err
			}
			value, err = linux.ReadSysctl("net/netfilter/nf_conntrack_tcp_timeout_close_wait")
			return err
		})
		cancel()
		if (value == "77") != tt.set || n.limits != nil {
			t.Errorf("roles left %b, rules %t: the limit is %s, %v", tt.left, tt.rules, value, n.limits)
		}
	}
}

// What kube-proxy's port answers, as tools ask it.
func TestProxyHandler(t *testing.T) {
	flags := pflag.NewFlagSet("agent", pflag.ContinueOnError)
	set := config.AddFlags(flags)
	if err := flags.Parse(strings.Fields("--node n1 --pod-cidr 10.244.0.0/16 --nodeport-addresses 192.0.2.0/24 --conntrack-min 5")); err != nil {
		t.Fatal(err)
	}
	cfg, err := set.Agent()
	if err != nil {
		t.Fatal(err)
	}
	h := proxyHandler(cfg, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("counters")) }))
	get := func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w
	}
	for path, want := range map[string]string{"/proxyMode": "nftables", "/healthz": "ok", "/metrics": "counters"} {
		if w := get(path); w.Code != http.StatusOK || w.Body.String() != want {
			t.Errorf("%s: %d %s, want %s", path, w.Code, w.Body, want)
		}
	}
	var got struct {
		Fairlead map[string]string `json:"fairlead"`
		Proxy    struct {
			Mode, ClusterCIDR, MetricsBindAddress string
			NodePortAddresses                     []string
			Conntrack                             struct {
				Min                   int
				TCPEstablishedTimeout string
			}
		} `json:"kubeproxy.config.k8s.io"`
	}
	if err := json.Unmarshal(get("/configz").Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	p := got.Proxy
	if p.Mode != "nftables" || p.ClusterCIDR != "10.244.0.0/16" || p.MetricsBindAddress != "127.0.0.1:10249" || len(p.NodePortAddresses) != 1 ||
		p.NodePortAddresses[0] != "192.0.2.0/24" || p.Conntrack.Min != 5 || p.Conntrack.TCPEstablishedTimeout != "24h0m0s" {
		t.Errorf("configuration %+v", p)
	}
	if got.Fairlead["node"] != "n1" || got.Fairlead["conntrack-min"] != "5" || got.Fairlead["proxy"] != "true" {
		t.Errorf("flags %v", got.Fairlead)
	}
}
