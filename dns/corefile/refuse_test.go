// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package corefile

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// around are server blocks in which an option of a plugin stands where %s is.
var around = map[string]string{
	"autopath": "kubernetes cluster.local\nautopath %s", "bind": "bind %s", "cache": "cache {\n%s\n}", "errors": "errors {\n%s\n}",
	"forward": "forward . 10.0.0.1 {\n%s\n}", "health": "health {\n%s\n}", "hosts": "hosts {\n%s\n}", "kubernetes": "kubernetes cluster.local {\n%s\n}",
	"loadbalance": "loadbalance {\n%s\n}", "log": "log {\n%s\n}", "rewrite": "rewrite %s a b", "template": "template ANY ANY {\n%s\n}",
}

// instead are texts for options that do not stand for themselves.
var instead = map[string]string{
	"autopath @kubernetes": "@kubernetes", "autopath FILE": "/etc/resolv.conf", "bind ADDRESS": "10.0.0.1", "bind INTERFACE": "eth0", "bind except": "10.0.0.1 {\nexcept 10.0.0.2\n}",
	"cache TTL": "success 1 10", "cache success": "success 1000", "cache denial": "denial 1000 20 1", "cache prefetch": "prefetch 2", "cache servfail": "servfail 10s",
	"cache serve_stale_policy": "serve_stale_policy prefer_positive", "cache disable": "disable denial\ndisable success",
	"errors consolidate": "consolidate 5m .* warning", "hosts FILE": "10.0.0.1 a", "hosts without FILE": "10.0.0.1 a", "hosts ENTRIES": "10.0.0.1 a", "hosts ttl": "ttl 5",
	"hosts fallthrough_unsupported": "fallthrough_unsupported\nfallthrough", "hosts reload": "reload 5s", "health lameduck": "lameduck 5s",
	"kubernetes pods": "pods verified", "kubernetes ttl": "ttl 5", "kubernetes ignore": "ignore empty_service", "kubernetes namespaces": "namespaces a",
	"forward except": "except a", "forward policy": "policy random", "forward max_fails": "max_fails 0", "forward expire": "expire 1s", "forward health_check": "health_check 0s no_rec",
	"forward max_concurrent": "max_concurrent 0", "forward tls_servername": "tls_servername a", "forward failover": "failover NXDOMAIN",
	"log NAMES": "class all", "log class": "class success denial error",
	"template match": "match a", "template answer": "answer a", "template additional": "additional a", "template authority": "authority a", "template rcode": "rcode NXDOMAIN", "template ederror": "ederror 1",
	"rewrite name": "name", "rewrite type": "type A AAAA #", "rewrite class": "class IN CH #", "rewrite ttl": "ttl a 5 #", "rewrite rcode": "rcode a 1 2 #",
}

// elsewhere are options that are arguments, which TestRefusals and TestCorefiles have.
var elsewhere = map[string]bool{
	"forward ADDRESS": true, "forward FILE": true, "forward tls://ADDRESS": true, "forward HOSTNAME": true, "forward other schemes": true, "forward the cluster's DNS": true,
	"loadbalance round_robin": true, "loadbalance weighted": true, "cache ZONES": true, "hosts ": true, "log FORMAT": true,
}

// TestTable: what the table says of each plugin and each option is what comes out. A plugin or an option that is not in the table is refused.
func TestTable(t *testing.T) {
	unused := map[string]bool{}
	for k := range instead {
		unused[k] = true
	}
	for _, r := range table {
		key := r.plugin + " " + r.option
		if r.plugin[0] == '(' || elsewhere[key] {
			continue
		}
		text := r.plugin
		if r.option != "" {
			form, ok := around[r.plugin]
			if !ok {
				t.Errorf("no form for options of %s", r.plugin)
				continue
			}
			option := r.option
			if s, ok := instead[key]; ok {
				option = s
				delete(unused, key)
			}
			text = fmt.Sprintf(form, option)
		} else if form, ok := around[r.plugin]; ok && !strings.Contains(form, "{") {
			continue // nothing without an argument
		} else if ok {
			text, _, _ = strings.Cut(form, " {")
		} else if r.plugin == "root" {
			text = "root /etc"
		}
		c, err := Parse("Corefile", []byte(". {\n"+text+"\n}\n"), env())
		if r.fate == Refused {
			var p Problems
			if !errors.As(err, &p) || len(p) != 1 || p[0].Line < 2 || !strings.Contains(p[0].Why, r.why) {
				t.Errorf("%s: %v, want %s", key, err, r.why)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", key, err)
			continue
		}
		found := false
		for _, n := range c.Notes {
			found = found || n.Line >= 2 && n.Fate == r.fate && strings.Contains(n.Why, r.why)
		}
		if !found {
			t.Errorf("%s: no note that it is %v %s:\n%s", key, r.fate, r.why, Explain(c))
		}
	}
	for k := range unused {
		t.Errorf("%s is not in the table", k)
	}
	for plugin, form := range around {
		if _, err := Parse("Corefile", []byte(". {\n"+fmt.Sprintf(form, "frobnicate")+"\n}\n"), env()); plugin != "hosts" && plugin != "health" && err == nil {
			t.Errorf("%s: frobnicate is accepted", plugin)
		}
	}
	for _, r := range table {
		if r.fate != Honoured && r.why == "" {
			t.Errorf("%s %s: %v without a reason", r.plugin, r.option, r.fate)
		}
	}
}

// TestRefusals: a row is a Corefile and its problems, each with its line and its reason.
func TestRefusals(t *testing.T) {
	for _, r := range []struct {
		text string
		want string // lines, each the beginning of a problem; without the name of the file
	}{
		// Server blocks.
		{"", "1: Corefile: there is no server block in it"},
		{"# nothing", "1: Corefile: there is no server block in it"},
		{"tls://. {\n}\nhttps://example.org {\n}", "1: tls://.: Fairlead takes questions by UDP and TCP\n3: https://example.org: Fairlead takes"},
		{".: {\n}", `1: .:: ".:" has no port`},
		{".:0 {\n}", "1: .:0: port 0 is not"},
		{".:65536 {\n}", "1: .:65536: port 65536 is not"},
		{"a..b {\n}", `1: a..b: "a..b" is not a domain name`},
		{strings.Repeat("a", 64) + " {\n}", "1: " + strings.Repeat("a", 64) + ": "},
		{"__PILLAR__DNS__DOMAIN__:53 {\n}", "1: __PILLAR__DNS__DOMAIN__:53: \"__PILLAR__DNS__DOMAIN__\" is to be replaced"},
		{"a {\n}\nb A {\n}", "3: A: a. at port 53 is served already, by the server block of /etc/coredns/Corefile:1"},
		{"a {\nbind 10.0.0.1\n}\na {\nbind 10.0.0.2\n}\na {\n}", "7: a: a. at port 53 is served already, by the server block of /etc/coredns/Corefile:1"},
		{"a:53 {\n}\na:54 {\n}\na:53 {\n}", "5: a:53: a. at port 53 is served already, by the server block of /etc/coredns/Corefile:1"},
		// Syntax.
		{". {\nerrors\n", "2: end of file: syntax: expected } at the end of the server block"},
		{"a, {\n}", "1: {: syntax: expected another zone after the comma"},
		{"a,", "1: end of file: syntax: expected another zone"},
		{". {\ncache {\nsuccess 1\n", "3: end of file: syntax: expected } at the end of cache"},
		{". {\nerrors }\n}", "2: }: syntax: } without a {"},
		{". {\nimport\n}", "2: import: syntax: expected what to import"},
		{". {\nimport a b\n}", "2: import: syntax: expected one snippet"},
		{". {\nimport \"\"\n}", "2: import: syntax: expected what"},
		{". {\nimport nowhere\n}", "2: import: syntax: open /etc/coredns/nowhere: file does not exist"},
		{". {\nimport */*\n}", "2: import: syntax: /etc/coredns/*/*: a pattern of files may have one *"},
		{"(a) {\nimport a\n}\n. {\nimport a\n}", "2: import: syntax: more than 1000 imports"},
		{"(a) {\n" + strings.Repeat("prometheus :9153 ", 1000) + "\n}\n. {\n" + strings.Repeat("import a\n", 70) + "}", "70: import: syntax: more than 131072 words are imported"},
		{"(a) {\n}\n(a) {\n}", "3: (a): syntax: the snippet is there twice"},
		{"(a)\nerrors\n", "2: errors: syntax: expected { after the name of a snippet"},
		{"(a) {\nb {\n}\n", "3: end of file: syntax: expected } at the end of snippet (a)"},
		{". {\nerrors\n{\nconsolidate 1s .*\n}\n}", "3: {: it belongs to no option of errors"},
		{"{$NOWHERE} {\n forward . {%NOWHERE2%}\n}", "1: {$NOWHERE}: the variable NOWHERE is not set\n2: {%NOWHERE2%}: the variable NOWHERE2 is not set"},
		// All at once.
		{". {\nfoo\nacl {\nallow net 10.0.0.0/8\n}\nkubernetes cluster.local {\nlabels a=b\npods maybe\n}\nforward . quic://1.1.1.1 {\nsource_address 10.0.0.1\npolicy best\n}\n}",
			"2: foo: CoreDNS 1.14 has no such plugin\n3: acl: who may ask\n7: kubernetes labels a=b: all Services have names\n8: kubernetes pods maybe: expected disabled, insecure or verified\n" +
				"10: forward . quic://1.1.1.1: quic://1.1.1.1: upstreams are asked by\n11: forward source_address 10.0.0.1: the route\n12: forward policy best: expected random"},
		// Once.
		{". {\nerrors\nerrors\ncache\ncache\nhosts\nhosts\nkubernetes a\nkubernetes b\n}", "3: errors: it is there twice\n5: cache: it is there twice\n7: hosts: it is there twice\n9: kubernetes: it is there twice"},
		// Plugins.
		{". {\nbind\n}", "2: bind: expected 1 arguments or more"},
		{". {\nbind __PILLAR__LOCAL__DNS__\n}", "2: bind __PILLAR__LOCAL__DNS__: __PILLAR__LOCAL__DNS__ is to be replaced"},
		{". {\nautopath\n}", "2: autopath: expected 1 arguments or more"},
		{". {\nautopath @kubernetes\n}", "2: autopath @kubernetes: it is nothing without kubernetes"},
		{". {\nroot\n}", "2: root: expected 1 arguments"},
		{". {\ncache 0\n}", "2: cache 0: a TTL of 0 s"},
		{". {\ncache {\nsuccess\nsuccess a\nsuccess 1 0\ndenial 1 2 -1\nprefetch x\nprefetch 1 x\nprefetch 1 1m 5%\nserve_stale x\nserve_stale 1h sometimes\nservfail 6m\ndisable\ndisable all\nkeepttl 1\n}\nhosts {\nno_reverse 1\n}\n}",
			"3: cache success: expected 1 to 3\n4: cache success a: \"a\" is not\n5: cache success 1 0: \"0\" is not\n6: cache denial 1 2 -1: \"-1\" is not\n7: cache prefetch x: \"x\" is not\n" +
				"8: cache prefetch 1 x: time: invalid duration\n9: cache prefetch 1 1m 5%: \"5%\" is not\n10: cache serve_stale x: time: invalid\n11: cache serve_stale 1h sometimes: \"sometimes\" is neither\n" +
				"12: cache servfail 6m: failures may be kept for 5m\n13: cache disable: expected 1\n14: cache disable all: \"all\" is neither\n15: cache keepttl 1: expected 0\n18: hosts no_reverse 1: expected 0"},
		{". {\ncache {\ndisable success\n}\nforward . 10.0.0.1\n}", "2: cache: success and denial can only be disabled both"},
		{". {\ncache {\ndisable success a\n}\nforward . 10.0.0.1\n}", "3: cache disable success a: a part of the zones"},
		{". {\ncache 5 a\nforward . 10.0.0.1\n}", "2: cache 5 a: a part of the zones"},
		{". {\nforward\nforward .\nforward . dns.example\nforward . /nowhere\nforward . https://1.1.1.1\nforward . unix:///x\nforward a..b 10.0.0.1\nforward . tls://dns.example%dns.example\n}",
			"2: forward: expected 2 arguments\n3: forward .: expected 2 arguments\n4: forward . dns.example: dns.example: write its addresses\n5: forward . /nowhere: open /nowhere: file does not exist\n" +
				"6: forward . https://1.1.1.1: https://1.1.1.1: upstreams\n7: forward . unix:///x: unix:///x: upstreams\n8: forward a..b 10.0.0.1: \"a..b\" is not a domain name\n9: forward . tls://dns.example%dns.example: tls://dns.example%dns.example: write its addresses"},
		{". {\nforward . 10.0.0.1 {\nexcept\nmax_fails x\nexpire -1s\nhealth_check\nhealth_check 1s often\nhealth_check 1s domain\nforce_tcp 1\ntls a b\ntls nowhere\ntls_servername\nfailover NOERROR\nfailover X\nmax_concurrent -1\n}\n}",
			"3: forward except: expected 1\n4: forward max_fails x: expected a number\n5: forward expire -1s: -1s is negative\n6: forward health_check: expected 1\n7: forward health_check 1s often: expected no_rec\n" +
				"8: forward health_check 1s domain: expected no_rec\n9: forward force_tcp 1: expected 0\n10: forward tls a b: upstreams are not shown\n11: forward tls nowhere: open /etc/coredns/nowhere\n" +
				"12: forward tls_servername: expected 1\n13: forward failover NOERROR: \"NOERROR\" is not\n14: forward failover X: \"X\" is not\n15: forward max_concurrent -1: expected a number"},
		{". {\nforward . tls://10.0.0.1%a {\ntls_servername b\n}\n}", "2: forward . tls://10.0.0.1%a: tls://10.0.0.1%a and tls_servername both"},
		{". {\nforward . 10.0.0.1:0\nforward a 0.0.0.0\nforward b tls://[ff02::1]\n}", "2: forward . 10.0.0.1:0: 10.0.0.1:0: no resolver\n3: forward a 0.0.0.0: 0.0.0.0: no resolver\n4: forward b tls://[ff02::1]: tls://[ff02::1]: no resolver"},
		{". {\nforward . 10.96.0.10 10.0.0.1\n}", "2: forward . 10.96.0.10 10.0.0.1: names go either to"},
		{". {\nforward . 10.96.0.10\n}", "2: forward .: the cluster's DNS is this one: that would be a loop"},
		{"cluster.local {\nkubernetes\nforward . 10.96.0.10:53\n}", "3: forward .: the cluster's DNS is this one"},
		{". {\nloadbalance weighted file\nloadbalance leastconn\nloadbalance round_robin x\n}", "2: loadbalance weighted file: weighted: addresses have no weights\n3: loadbalance leastconn: \"leastconn\" is unknown\n4: loadbalance round_robin x: expected 0 to 1"},
		{". {\nerrors stderr\nlog a..b\nlog {\nclass\nclass some\n}\n}", "2: errors stderr: expected nothing, or stdout\n3: log a..b: \"a..b\" is not\n5: log class: expected 1\n6: log class some: \"some\" is none of"},
		{"10.0.0.0/8 {\nkubernetes\n}", "2: kubernetes: expected a zone that is not a reverse one"},
		{"home.arpa {\nkubernetes\n}", "2: kubernetes: expected a zone that is not a reverse one"},
		{"a_b {\nkubernetes\n}", "1: Corefile: block a_b.: cluster domain \"a_b.\": label \"a_b\" has a character"},
		{"10.0.0.0/8 {\nforward . 10.96.0.10\n}", "1: Corefile: zones 10.in-addr.arpa.: the names that addresses lead to"},
		{". {\nkubernetes a {\nttl 3601\nttl\nignore\nignore me\nendpoint_pod_names x\nnamespaces\nupstream\nresyncperiod 5m\npods\n}\n}",
			"3: kubernetes ttl 3601: expected seconds\n4: kubernetes ttl: expected seconds\n5: kubernetes ignore: expected empty_service\n6: kubernetes ignore me: expected\n7: kubernetes endpoint_pod_names x: expected 0\n" +
				"8: kubernetes namespaces: expected 1\n9: kubernetes upstream: kubernetes has no such option\n10: kubernetes resyncperiod 5m: kubernetes has no such option\n11: kubernetes pods: expected disabled"},
		{". {\nhosts {\nttl 0\nreload\nreload -1s\nfallthrough\n10.0.0.1 a\n}\n}", "3: hosts ttl 0: expected seconds\n4: hosts reload: expected 1\n5: hosts reload -1s: -1s is negative\n7: 10.0.0.1 a: entries must stand before fallthrough"},
		{". {\nhosts {\nfallthrough_unsupported\n}\n}", "2: hosts: fallthrough_unsupported is nothing without fallthrough"},
		{". {\nrewrite \"\" a b\nloadbalance \"\"\n}", "2: rewrite  a b: \"\" is unknown\n3: loadbalance : \"\" is unknown"},
		{". {\nrewrite\nrewrite a\nrewrite stop\nrewrite answer name a b\nrewrite cname a b\nrewrite edns0 local set 0xffee 1\nrewrite name a\nrewrite name like a b\nrewrite name exact a b because\n" +
			"rewrite name exact a b answer\nrewrite name exact a b answer no\nrewrite name exact a b answer name c\nrewrite name regex ( b\nrewrite name regex a {1}\nrewrite name suffix a b answer auto answer name c d\n" +
			"rewrite type A\nrewrite type A B\nrewrite class IN XX\nrewrite ttl a\nrewrite ttl a 5-4\nrewrite ttl a -\nrewrite ttl like a 5\nrewrite rcode a b\nrewrite rcode a NOPE 3\n}",
			"2: rewrite: expected what to rewrite\n3: rewrite a: \"a\" is unknown\n4: rewrite stop: expected what\n5: rewrite answer name a b: an answer is rewritten behind\n6: rewrite cname a b: cname: the target of an alias\n" +
				"7: rewrite edns0 local set 0xffee 1: edns0: options of a question\n8: rewrite name a: expected 2\n9: rewrite name like a b: \"like\" is none of exact\n10: rewrite name exact a b because: expected answer, not\n" +
				"11: rewrite name exact a b answer: expected auto, name or value\n12: rewrite name exact a b answer no: expected auto\n13: rewrite name exact a b answer name c: expected 2 arguments\n" +
				"14: rewrite name regex ( b: regular expression\n15: rewrite name regex a {1}: \"{1}\" uses 1 groups\n16: rewrite name suffix a b answer auto answer name c d: the names of the answer\n" +
				"17: rewrite type A: expected 2\n18: rewrite type A B: \"B\" is not a type\n19: rewrite class IN XX: \"XX\" is not a class\n20: rewrite ttl a: expected 2 to 3\n21: rewrite ttl a 5-4: the TTL's minimum\n" +
				"22: rewrite ttl a -: \"-\" is neither\n23: rewrite ttl like a 5: \"like\" is none\n24: rewrite rcode a b: expected 3 to 4\n25: rewrite rcode a NOPE 3: \"NOPE\" is not"},
		{". {\ntemplate\ntemplate IN\ntemplate XX A\ntemplate IN XX\ntemplate IN A a..b\ntemplate IN A {\nmatch\nmatch (\nrcode\nrcode nxdomain\nederror x\nederror 1 2 3\nfallthrough a..b\n}\ntemplate IN A {\nanswer \"{{ .Remote }}\"\n}\n}",
			"2: template: expected 2\n3: template IN: expected 2\n4: template XX A: \"XX\" is not a class\n5: template IN XX: \"XX\" is not a type\n6: template IN A a..b: \"a..b\" is not\n7: template IN A: regular expression\n8: template match: expected 1\n" +
				"10: template rcode: expected 1\n11: template rcode nxdomain: \"nxdomain\" is not\n12: template ederror x: strconv\n13: template ederror 1 2 3: expected 1 to 2\n14: template fallthrough a..b: \"a..b\"\n16: template IN A: template field .Remote"},
	} {
		c, err := Parse("/etc/coredns/Corefile", []byte(r.text), env())
		var p Problems
		if !errors.As(err, &p) {
			t.Errorf("%s\nis accepted", r.text)
			continue
		}
		got, want := strings.Split(err.Error(), "\n"), strings.Split(r.want, "\n")
		same := len(got) == len(want)
		for i := range min(len(got), len(want)) {
			same = same && strings.HasPrefix(got[i], "/etc/coredns/Corefile:"+want[i])
		}
		if !same {
			t.Errorf("%s\nproblems\n%v\nwant\n%s", r.text, err, r.want)
		}
		if !strings.Contains(Explain(c), p[0].String()) {
			t.Errorf("%v is not explained in\n%s", p[0], Explain(c))
		}
	}
}
