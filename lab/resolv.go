// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// resolver is the content of a resolv.conf.
type resolver struct {
	servers  []string
	searches []string
	options  []string
}

// Limits of a pod's resolver as Kubernetes validates them.
const (
	maxServers  = 3
	maxSearches = 32
)

// podResolver decides a pod's resolv.conf from its DNS policy, the way a kubelet does. host is the machine's own resolv.conf.
func podResolver(pod *corev1.Pod, host, domain string, dns []netip.Addr) resolver {
	var r resolver
	policy := pod.Spec.DNSPolicy
	if policy == corev1.DNSClusterFirst && pod.Spec.HostNetwork {
		policy = corev1.DNSDefault // the pod asked for ClusterFirstWithHostNet if it wanted the other
	}
	switch policy {
	case corev1.DNSNone:
	case corev1.DNSDefault:
		r = parseResolver(host)
	default:
		for _, a := range dns {
			r.servers = append(r.servers, a.String())
		}
		r.searches = []string{pod.Namespace + ".svc." + domain, "svc." + domain, domain}
		r.options = []string{"ndots:5"}
	}
	if c := pod.Spec.DNSConfig; c != nil {
		r.servers = merge(r.servers, c.Nameservers)
		r.searches = merge(r.searches, c.Searches)
		for _, o := range c.Options {
			r.options = setOption(r.options, o)
		}
	}
	r.servers = r.servers[:min(len(r.servers), maxServers)]
	r.searches = r.searches[:min(len(r.searches), maxSearches)]
	return r
}

// merge appends what is new in b to a.
func merge(a, b []string) []string {
	for _, s := range b {
		if !slices.Contains(a, s) {
			a = append(a, s)
		}
	}
	return a
}

// setOption replaces the option of that name, or appends it.
func setOption(options []string, o corev1.PodDNSConfigOption) []string {
	text := o.Name
	if o.Value != nil {
		text += ":" + *o.Value
	}
	for i, have := range options {
		if name, _, _ := strings.Cut(have, ":"); name == o.Name {
			options[i] = text
			return options
		}
	}
	return append(options, text)
}

// parseResolver reads a resolv.conf; unknown lines are left out. As in the C library the last search line counts.
func parseResolver(text string) resolver {
	var r resolver
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			r.servers = append(r.servers, f[1])
		case "search", "domain":
			r.searches = f[1:]
		case "options":
			r.options = append(r.options, f[1:]...)
		}
	}
	return r
}

// String is the file's text.
func (r resolver) String() string {
	var b strings.Builder
	for _, s := range r.servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(r.searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(r.searches, " "))
	}
	if len(r.options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(r.options, " "))
	}
	return b.String()
}

// podHostname is the name a pod calls itself, and its fully qualified name when it has a subdomain.
func podHostname(pod *corev1.Pod, domain string) (short, full string) {
	short = pod.Name
	if pod.Spec.Hostname != "" {
		short = pod.Spec.Hostname
	}
	// The kernel's limit is 64 bytes; Kubernetes cuts at 63 and never ends with a dash or dot.
	if len(short) > 63 {
		short = strings.TrimRight(short[:63], "-.")
	}
	if pod.Spec.Subdomain != "" {
		full = short + "." + pod.Spec.Subdomain + "." + pod.Namespace + ".svc." + domain
	}
	return short, full
}

// podHosts is the text of a pod's /etc/hosts, in the form of a kubelet's.
func podHosts(pod *corev1.Pod, domain string, addrs []netip.Addr) string {
	var b strings.Builder
	b.WriteString("# Kubernetes-managed hosts file.\n" +
		"127.0.0.1\tlocalhost\n" +
		"::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\n" +
		"fe00::0\tip6-mcastprefix\n" +
		"fe00::1\tip6-allnodes\n" +
		"fe00::2\tip6-allrouters\n")
	short, full := podHostname(pod, domain)
	for _, a := range addrs {
		if full != "" {
			fmt.Fprintf(&b, "%s\t%s\t%s\n", a, full, short)
		} else {
			fmt.Fprintf(&b, "%s\t%s\n", a, short)
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, h := range pod.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", h.IP, strings.Join(h.Hostnames, "\t"))
		}
	}
	return b.String()
}

// podNsswitch is the machine's nsswitch.conf with host names looked up in the pod's own files and DNS only. A machine's resolver
// service would answer over a UNIX socket from outside the pod's network.
func podNsswitch(host string) string {
	var b strings.Builder
	for line := range strings.Lines(host) {
		if !strings.HasPrefix(strings.TrimSpace(line), "hosts:") {
			b.WriteString(line)
		}
	}
	if s := b.String(); s != "" && !strings.HasSuffix(s, "\n") {
		b.WriteString("\n")
	}
	b.WriteString("hosts: files dns\n")
	return b.String()
}
