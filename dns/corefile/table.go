// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package corefile

import (
	"fmt"
	"strings"
)

// row says what becomes of a plugin, where option is empty, or of an option. A plugin that is refused or has no effect has no options.
type row struct {
	plugin, option string
	fate           Fate
	why            string
}

// table are all plugins of CoreDNS 1.14 and all their options that matter here. docs/corefile.md shows it.
var table = []row{
	{"(server block)", "zones", Honoured, ""},
	{"(server block)", "dns://", Honoured, ""},
	{"(server block)", "one port for all", Differently, "if that is not 53, it is the one of CoreDNS's pods, to which the Service leads; here the Service's own port 53 is served"},
	{"(server block)", "other schemes", Refused, "Fairlead takes questions by UDP and TCP; remove the block, or keep a CoreDNS for it"},
	{"(file)", "import", Honoured, ""},
	{"(file)", "{$VARIABLE}", Honoured, ""},
	{"(file)", "__PILLAR__ marks", Differently, "those of NodeLocal DNSCache for the cluster's DNS and for the upstreams; others are refused"},

	{"autopath", "", Honoured, ""},
	{"autopath", "@kubernetes", Honoured, ""},
	{"autopath", "FILE", Refused, "names are completed by the search list of the pod that asks; write autopath @kubernetes"},
	{"bind", "", Honoured, ""},
	{"bind", "ADDRESS", Honoured, ""},
	{"bind", "INTERFACE", Refused, "write its addresses"},
	{"bind", "except", Refused, "write the addresses that are to be used"},
	{"cache", "", Honoured, ""},
	{"cache", "TTL", Honoured, ""},
	{"cache", "ZONES", Differently, "the cluster's zones are answered from their state and never cached; of the others, all are cached or none"},
	{"cache", "success", Differently, "the cache is bounded by its memory: 512 octets are taken for each answer of the capacity"},
	{"cache", "denial", Differently, "the cache is bounded by its memory: 512 octets are taken for each answer of the capacity"},
	{"cache", "prefetch", Differently, "the number and the percentage count; the time within which the questions come does not"},
	{"cache", "serve_stale", Honoured, ""},
	{"cache", "serve_stale_policy", NoEffect, "a denial does not take the place of an answer while upstreams fail"},
	{"cache", "servfail", Differently, "the time is the longest: a failure is remembered for a second at first, and twice as long each further time (RFC 9520)"},
	{"cache", "disable", Honoured, "for the cluster's zones; or for all others, with both success and denial"},
	{"cache", "keepttl", NoEffect, "the TTL of a kept answer counts down"},
	{"errors", "", Differently, "questions that are answered with SERVFAIL are in the log of queries; an upstream that fails is logged when it begins to and when it is back"},
	{"errors", "consolidate", NoEffect, "the log of queries has a bound of its own, and says how many it leaves out"},
	{"errors", "stacktrace", NoEffect, "a panic is always logged with its stack"},
	{"forward", "", Honoured, ""},
	{"forward", "ADDRESS", Honoured, ""},
	{"forward", "FILE", Honoured, ""},
	{"forward", "tls://ADDRESS", Honoured, ""},
	{"forward", "HOSTNAME", Refused, "write its addresses"},
	{"forward", "other schemes", Refused, "upstreams are asked by UDP, TCP and TLS; use one that can be asked so, such as tls://"},
	{"forward", "the cluster's DNS", Differently, "that is this one: the names are answered here, with pods insecure and ttl 30, as kubeadm has it"},
	{"forward", "except", Honoured, ""},
	{"forward", "policy", Honoured, ""},
	{"forward", "max_fails", Honoured, ""},
	{"forward", "expire", Honoured, ""},
	{"forward", "health_check", Honoured, ""},
	{"forward", "max_concurrent", Honoured, ""},
	{"forward", "force_tcp", Honoured, ""},
	{"forward", "tls", Honoured, ""},
	{"forward", "tls_servername", Honoured, ""},
	{"forward", "failover", Honoured, ""},
	{"forward", "prefer_udp", NoEffect, "an upstream is asked by UDP first"},
	{"forward", "failfast_all_unhealthy_upstreams", NoEffect, "upstreams that are down are asked last"},
	{"forward", "next", Refused, "put the upstreams into one forward and use failover, which asks the next one after these codes"},
	{"forward", "next_on_nodata", Refused, "an upstream that says there is no such record is believed; forward each zone to the upstreams that know it"},
	{"forward", "max_age", NoEffect, "a connection that fails is replaced"},
	{"forward", "max_idle_conns", NoEffect, "questions share connections"},
	{"forward", "max_connect_attempts", NoEffect, "each upstream is tried within the time for a question"},
	{"forward", "read_timeout", NoEffect, "an upstream may take 1.5 s before the next one is asked"},
	{"forward", "doh_method", Refused, "upstreams are asked by UDP, TCP and TLS"},
	{"forward", "resolver", Refused, "write the addresses of the upstreams"},
	{"forward", "source_address", Refused, "the route to an upstream decides; give the route a source address"},
	{"health", "", NoEffect, "the agent's health is served at its own address"},
	{"health", "lameduck", NoEffect, "the sockets outlive the process that answers, so there is nothing to wait for"},
	{"hosts", "", Honoured, ""},
	{"hosts", "FILE", Honoured, ""},
	{"hosts", "without FILE", Differently, "only the entries in it count; to have /etc/hosts of the node read, name it"},
	{"hosts", "ENTRIES", Honoured, ""},
	{"hosts", "ttl", Honoured, ""},
	{"hosts", "no_reverse", Honoured, ""},
	{"hosts", "fallthrough", Honoured, ""},
	{"hosts", "fallthrough_unsupported", Honoured, ""},
	{"hosts", "reload", Differently, "the file is read again when it changes"},
	{"kubernetes", "", Honoured, ""},
	{"kubernetes", "pods", Honoured, ""},
	{"kubernetes", "ttl", Honoured, ""},
	{"kubernetes", "endpoint_pod_names", Honoured, ""},
	{"kubernetes", "fallthrough", Honoured, ""},
	{"kubernetes", "ignore", Honoured, ""},
	{"kubernetes", "namespaces", Honoured, ""},
	{"kubernetes", "noendpoints", Differently, "the endpoints are known anyway; headless Services have their addresses"},
	{"kubernetes", "startup_timeout", NoEffect, "what was known before a restart is answered at once"},
	{"kubernetes", "apiserver_qps", NoEffect, "the agent's own connection to the API server is used"},
	{"kubernetes", "apiserver_burst", NoEffect, "the agent's own connection to the API server is used"},
	{"kubernetes", "apiserver_max_inflight", NoEffect, "the agent's own connection to the API server is used"},
	{"kubernetes", "endpoint", Refused, "the names are those of the cluster that the agent belongs to, by its own connection; remove the line"},
	{"kubernetes", "tls", Refused, "the names are those of the cluster that the agent belongs to, by its own connection; remove the line"},
	{"kubernetes", "kubeconfig", Refused, "the names are those of the cluster that the agent belongs to, by its own connection; remove the line"},
	{"kubernetes", "labels", Refused, "all Services have names; choose by namespaces instead"},
	{"kubernetes", "namespace_labels", Refused, "choose by namespaces instead"},
	{"kubernetes", "multicluster", Refused, "names of other clusters' Services are not answered; forward that zone to a CoreDNS"},
	{"kubernetes", "zonal", Refused, "there are no names by topology zone; a Service's trafficDistribution prefers endpoints nearby"},
	{"loadbalance", "", Honoured, ""},
	{"loadbalance", "round_robin", Honoured, ""},
	{"loadbalance", "weighted", Refused, "addresses have no weights; use round_robin"},
	{"loadbalance", "prefer", Refused, "addresses have no order of preference; a Service's trafficDistribution prefers endpoints nearby"},
	{"log", "", Honoured, ""},
	{"log", "NAMES", Honoured, ""},
	{"log", "FORMAT", Differently, "what is logged of a question does not depend on the format"},
	{"log", "class", Honoured, ""},
	{"loop", "", NoEffect, "a loop is noticed whenever it comes to be, and reported without ending the process"},
	{"prometheus", "", NoEffect, "the metrics are served at the agent's own address, under the names of CoreDNS where the meaning is the same"},
	{"ready", "", NoEffect, "the agent's readiness is served at its own address"},
	{"reload", "", NoEffect, "files are read again when they change"},
	{"rewrite", "", Honoured, ""},
	{"rewrite", "name", Honoured, ""},
	{"rewrite", "type", Honoured, ""},
	{"rewrite", "class", Honoured, ""},
	{"rewrite", "ttl", Honoured, ""},
	{"rewrite", "rcode", Honoured, ""},
	{"rewrite", "cname", Refused, "the target of an alias is not followed under another name; rewrite the alias's own name with rewrite name"},
	{"rewrite", "edns0", Refused, "options of a question are not changed; have the client or the upstream set them"},
	{"root", "", Honoured, ""},
	{"template", "", Honoured, ""},
	{"template", "match", Honoured, ""},
	{"template", "answer", Honoured, ""},
	{"template", "additional", Honoured, ""},
	{"template", "authority", Honoured, ""},
	{"template", "rcode", Honoured, ""},
	{"template", "ederror", Honoured, ""},
	{"template", "fallthrough", Honoured, ""},
	{"template", "upstream", NoEffect, "aliases are followed anyway"},

	{"any", "", NoEffect, "ANY is always answered as RFC 8482 has it"},
	{"bufsize", "", NoEffect, "answers by UDP are no larger than 1232 octets, as the operators of the DNS agreed"},
	{"cancel", "", NoEffect, "a question is given up before a client gives up waiting, after 4.5 s"},
	{"chaos", "", Differently, "the CHAOS names say which Fairlead answers and on which node"},
	{"debug", "", NoEffect, "a panic does not end the process"},
	{"local", "", Refused, "names such as localhost are for the pod's own resolver; for others use hosts"},
	{"metadata", "", NoEffect, "nothing here uses it"},
	{"minimal", "", NoEffect, "answers have no more than is needed"},
	{"multisocket", "", NoEffect, "each core has sockets of its own"},
	{"nsid", "", Refused, "answers do not say which server they are from; ask for the CHAOS name id.server"},
	{"pprof", "", NoEffect, "the agent has profiles of its own"},
	{"timeouts", "", NoEffect, "connections that say nothing are closed after 10 s"},
	{"trace", "", NoEffect, "fairlead explain shows the steps of a question"},
	{"dnstap", "", NoEffect, "the query log has the questions"},

	{"acl", "", Refused, "who may ask is a setting of the agent: the cluster's pods and nodes, and the ranges it is given"},
	{"auto", "", Refused, "zone files are not served; forward the zone to a server that has it"},
	{"azure", "", Refused, "forward the zone to the provider's resolver"},
	{"clouddns", "", Refused, "forward the zone to the provider's resolver"},
	{"dns64", "", Refused, "addresses are not translated; forward to a resolver that does so"},
	{"dnssec", "", Refused, "answers are not signed; remove it, or keep a CoreDNS for the zone and forward to that"},
	{"erratic", "", Refused, "it is for tests"},
	{"etcd", "", Refused, "forward the zone to a CoreDNS that has it"},
	{"file", "", Refused, "zone files are not served; forward the zone to a server that has it, or use hosts"},
	{"geoip", "", Refused, "answers do not depend on where a client is"},
	{"grpc", "", Refused, "upstreams are asked by UDP, TCP and TLS; use forward"},
	{"grpc_server", "", Refused, "Fairlead takes questions by UDP and TCP"},
	{"header", "", Refused, "the flags of an answer say what it is"},
	{"https", "", Refused, "Fairlead takes questions by UDP and TCP"},
	{"https3", "", Refused, "Fairlead takes questions by UDP and TCP"},
	{"k8s_external", "", Refused, "external names are the business of a DNS outside the cluster; keep a CoreDNS for the zone and forward to that"},
	{"nomad", "", Refused, "forward the zone to a CoreDNS that has it"},
	{"on", "", Refused, "commands are not run"},
	{"proxyproto", "", Refused, "the client is whom the packet comes from"},
	{"quic", "", Refused, "Fairlead takes questions by UDP and TCP"},
	{"route53", "", Refused, "forward the zone to the provider's resolver"},
	{"secondary", "", Refused, "zones are not transferred; forward the zone to its server"},
	{"shed", "", Refused, "what one client may ask is bounded by settings of the agent"},
	{"sign", "", Refused, "zone files are not served"},
	{"tls", "", Refused, "Fairlead takes questions by UDP and TCP"},
	{"transfer", "", Refused, "the cluster's zones are not transferred; fairlead dump dns prints them"},
	{"tsig", "", Refused, "questions are not signed"},
	{"view", "", Refused, "all clients are told the same; use zones of different names"},
	{"whoami", "", Refused, "it is for tests"},
}

// lookup is the row of a plugin or of an option of it.
func lookup(plugin, option string) (row, bool) {
	for _, r := range table {
		if r.plugin == plugin && r.option == option {
			return r, true
		}
	}
	return row{}, false
}

// Table is the table of all directives and options, in Markdown.
func Table() string {
	var b strings.Builder
	b.WriteString("| plugin | option | | |\n|---|---|---|---|\n")
	for _, r := range table {
		option := ""
		if r.option != "" {
			option = "`" + r.option + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %v | %s |\n", r.plugin, option, r.fate, r.why)
	}
	return b.String()
}
