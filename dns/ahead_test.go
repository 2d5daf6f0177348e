// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"
	"net"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/model"
)

func TestLikely(t *testing.T) {
	for name, want := range map[string]string{
		"orders.shop.svc.cluster.local.":            "shop/orders",
		"Orders.SHOP.svc.Cluster.Local.":            "shop/orders",
		"_http._tcp.orders.shop.svc.cluster.local.": "shop/orders",
		"10-0-0-1.orders.shop.svc.example.":         "shop/orders",
		"svc.svc.svc.cluster.local.":                "svc/svc",
		"orders.shop.svc.":                          "shop/orders",
		"orders.svc.shop.svc.cluster.local.":        "shop/svc",
		"shop.svc.cluster.local.":                   "",
		"svc.cluster.local.":                        "",
		"svc.":                                      "",
		".":                                         "",
		"www.example.org.":                          "",
		"10-0-0-1.shop.pod.cluster.local.":          "",
		"1.0.96.10.in-addr.arpa.":                   "",
		"orders.shop.svcs.cluster.local.":           "",
	} {
		var q plain
		if !q.parse(message(t, func(m *mdns.Msg) { m.Question[0].Name = name })) {
			t.Fatalf("%s is not usual", name)
		}
		got, ok := q.likely()
		if text := got.String(); ok != (want != "") || ok && text != want {
			t.Errorf("%s: %s, %t; want %q", name, text, ok, want)
		}
	}
}

// Many queries that come at once, of all kinds, are each answered as one that comes alone.
func TestManyAtOnce(t *testing.T) {
	s := dual(t, nil)
	snap := s.Published()
	names := []string{"", "nothing.example.org.", "svc.cluster.local.", "nobody.shop.svc.cluster.local."}
	for name := range snap.Services.All() {
		names = append(names, fmt.Sprintf("%s.%s.svc.cluster.local.", name.Name, name.Namespace), fmt.Sprintf("_http._tcp.%s.%s.svc.cluster.local.", name.Name, name.Namespace))
	}
	sockets := listen(t, s, "127.0.0.1")
	client, err := net.Dial("udp", sockets.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	client.SetDeadline(time.Now().Add(20 * time.Second))
	ask := func(id uint16) []byte {
		req := message(t, func(m *mdns.Msg) {
			m.Id = id
			m.Question[0].Name, m.Question[0].Qtype = names[int(id)%len(names)], []uint16{mdns.TypeA, mdns.TypeAAAA, mdns.TypeSRV}[int(id)/len(names)%3]
		})
		if names[int(id)%len(names)] == "" {
			return req[:len(req)-1] // and none of the usual form
		}
		return req
	}
	const many = 3 * batchSize // more than a batch, on one socket, all there before it is served
	for id := range uint16(many) {
		if _, err := client.Write(ask(id)); err != nil {
			t.Fatal(err)
		}
	}
	defer serve(t, s, sockets)()
	got := map[uint16]string{}
	receive := func() uint16 {
		buf := make([]byte, 1500)
		n, err := client.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		id := uint16(buf[0])<<8 | uint16(buf[1])
		got[id] = comparable(t, buf[:n])
		return id
	}
	for len(got) < many {
		receive()
	}
	together := got
	got = map[uint16]string{}
	for id := range uint16(many) {
		if _, err := client.Write(ask(id)); err != nil {
			t.Fatal(err)
		}
		if is := receive(); is != id {
			t.Fatalf("answer to %d, want %d", is, id)
		}
		if got[id] != together[id] {
			t.Errorf("together: %s\nalone: %s", together[id], got[id])
		}
	}
}

// A server that has answered all has nothing in its inbox, or the next one would answer it again.
func TestAnsweredIsGone(t *testing.T) {
	s := dual(t, nil)
	sockets := listen(t, s, "127.0.0.1")
	defer serve(t, s, sockets)()
	client, err := net.Dial("udp", sockets.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	deadline := time.Now().Add(20 * time.Second)
	client.SetDeadline(deadline)
	for n := range 2 * busy {
		for range n {
			if _, err := client.Write(message(t, nil)); err != nil {
				t.Fatal(err)
			}
		}
		for range n {
			if _, err := client.Read(make([]byte, 1500)); err != nil {
				t.Fatal(err)
			}
		}
		for _, u := range sockets.udp {
			for full := 1; full > 0; { // the answer comes a moment before its query is ticked off
				file, err := copyInbox(u.inbox)
				if err != nil {
					t.Fatal(err)
				}
				view, err := openInbox(file)
				if err != nil {
					t.Fatal(err)
				}
				full = 0
				for i := range view.headers {
					full += int(view.headers[i].Len)
				}
				view.close()
				file.Close()
				if full > 0 {
					if time.Now().After(deadline) {
						t.Fatal("queries that are answered stay in the inbox")
					}
					time.Sleep(time.Millisecond)
				}
			}
		}
	}
}

// A batch is read ahead for whatever Services it may be about, also if there is none of them.
func TestAhead(t *testing.T) {
	_, in := newInbox(t)
	defer in.close()
	put := func(texts ...string) {
		in.n = len(texts)
		for i, name := range texts {
			msg := message(t, func(m *mdns.Msg) { m.Question[0].Name = name })
			in.headers[i].Len = uint32(copy(in.slots[i][:], msg))
		}
	}
	var a ahead
	put("orders.shop.svc.cluster.local.", "nobody.shop.svc.cluster.local.", "www.example.org.", "orders.shop.svc.cluster.local.")
	a.read(new(model.Snapshot), in)
	s := dual(t, nil)
	a.read(s.Published(), in)
	if a.services[0] == nil || a.services[0].Name != (model.Name{Namespace: "shop", Name: "orders"}) || a.services[1] != nil || a.services[2] != a.services[0] {
		t.Errorf("read %v", a.services[:4])
	}
	if before := a.sum; before == 0 {
		t.Error("nothing was read")
	}
	in.headers[0].Len = uint32(copy(in.slots[0][:], "no message"))
	in.headers[1].Len = slotSize + 1 // cut off
	a.read(s.Published(), in)
}
