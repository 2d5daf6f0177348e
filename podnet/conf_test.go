// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/fairlead/fairlead/ipam"
)

func TestParseArgs(t *testing.T) {
	for args, want := range map[string]ipam.Lease{
		"":  {},
		";": {},
		"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=orders-1;K8S_POD_UID=7;OTHER=x": {PodNamespace: "shop", PodName: "orders-1", PodUID: "7"},
		"K8S_POD_NAME=a=b;K8S_POD_UID;nonsense":                                              {PodName: "a=b"},
	} {
		got := parseArgs(&skel.CmdArgs{ContainerID: "c", IfName: "eth0", Netns: "/n", Args: args})
		want.ID, want.ContainerID, want.IfName, want.NetNS = hostName("c", "eth0"), "c", "eth0", "/n"
		if got.ID != want.ID || got.ContainerID != "c" || got.IfName != "eth0" || got.NetNS != "/n" ||
			got.PodNamespace != want.PodNamespace || got.PodName != want.PodName || got.PodUID != want.PodUID {
			t.Errorf("%q: %+v", args, got)
		}
	}
}

// FuzzParseConf wants an error or a configuration that can be used, and no panic.
func FuzzParseConf(f *testing.F) {
	for _, text := range []string{
		``, `{}`, `[]`, `null`, `{"dataDir":"/d"}`, `{"dataDir":"d"}`,
		`{"cniVersion":"1.1.0","name":"fairlead","podCIDRs":["10.0.0.0/24","fd00::/64"],"dataDir":"/d","mtu":1400,"agent":"/a"}`,
		`{"cniVersion":"1.1.0","dataDir":"/d","prevResult":{"ips":[{"address":"10.0.0.1/32","interface":0}],"interfaces":[{"name":"x"}]}}`,
		`{"cniVersion":"0.3.1","dataDir":"/d","prevResult":{"ips":[{"version":"4","address":"10.0.0.1/32"}]}}`,
		`{"cniVersion":"1.1.0","dataDir":"/d","cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]}`,
		`{"cniVersion":"1.1.0","dataDir":"/d","cni.dev/attachments":null}`, `{"dataDir":"/d","cni.dev/valid-attachments":{"a":1},"cni.dev/attachments":[7]}`,
		`{"cniVersion":"1.1.0","dataDir":"/d","podCIDRs":["10.0.0.0/33"]}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		conf, err := parseConf(data)
		if err != nil {
			if code(err) == 0 {
				t.Fatalf("error without a code: %v", err)
			}
			return
		}
		if !filepath.IsAbs(conf.DataDir) || conf.MTU < 0 || conf.MTU > maxMTU {
			t.Fatalf("took %+v", conf)
		}
		if _, err := conf.prev(); err != nil && code(err) == 0 {
			t.Fatalf("error without a code: %v", err)
		}
		if list, err := conf.valid(); err != nil && (code(err) == 0 || list != nil) {
			t.Fatalf("error without a code, or with a list: %v, %v", list, err)
		}
		ranges, err := conf.ranges()
		if err != nil {
			if code(err) == 0 {
				t.Fatalf("error without a code: %v", err)
			}
			return
		}
		if _, err := conf.store(ranges); err != nil && code(err) == 0 {
			t.Fatalf("error without a code: %v", err)
		}
	})
}

func TestParseAnswer(t *testing.T) {
	for text, want := range map[string][3]any{
		"HTTP/1.0 200 OK\r\nA: b\r\n\r\n":                                 {"200", "200 OK", true},
		"HTTP/1.0 200 OK\r\n\r\nbody\nmore":                               {"200", "body", true},
		"HTTP/1.1 503 Service Unavailable\r\nX: y\r\n\r\n waiting \nmore": {"503", "waiting", true},
		"HTTP/1.1 503 \r\n\r\n":                                           {"503", "503", true},
		"HTTP/1.1 504":                                                    {"504", "504", true},
		"HTTP/1.1":                                                        {"", "", false},
		"220 welcome\r\n":                                                 {"", "", false},
		"":                                                                {"", "", false},
	} {
		if status, why, ok := parseAnswer(text); [3]any{status, why, ok} != want {
			t.Errorf("%q: %q, %q, %v, want %q", text, status, why, ok, want)
		}
	}
}

// FuzzParseAnswer wants no panic, and of what is HTTP a reason of one line.
func FuzzParseAnswer(f *testing.F) {
	for _, text := range []string{"", "HTTP/1.0 200 OK\r\n\r\n", "HTTP/1.1 503 x\r\na: b\r\n\r\nwhy\nmore", "HTTP/ \r\n\r\n\n"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		status, why, ok := parseAnswer(text)
		if !ok && (status != "" || why != "") || strings.ContainsAny(status, " ") || strings.Contains(why, "\n") && strings.Contains(text, "\r\n\r\n") {
			t.Fatalf("%q: %q, %q, %v", text, status, why, ok)
		}
	})
}

// TestDocs: the tests that docs/cni.md names are there.
func TestDocs(t *testing.T) {
	page, err := os.ReadFile("../docs/cni.md")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile("`(podnet|ipam)\\.(Test[A-Za-z0-9]+)`").FindAllStringSubmatch(string(page), -1)
	if len(names) < 15 {
		t.Fatalf("found %d names", len(names))
	}
	for _, name := range names {
		files, err := filepath.Glob("../" + name[1] + "/*_test.go")
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			found = found || strings.Contains(string(text), "func "+name[2]+"(")
		}
		if !found {
			t.Errorf("there is no %s", name[0])
		}
	}
}
