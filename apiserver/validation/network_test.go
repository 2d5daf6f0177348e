// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package validation

import (
	"fmt"
	"strings"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

const baseSlice = `{"metadata":{"name":"orders-1","namespace":"shop"},"addressType":"IPv4","ports":[{"name":"http","port":8080}],
	"endpoints":[{"addresses":["10.244.1.2"],"nodeName":"n1","conditions":{"ready":true}}]}`

// endpoint is a patch of the only endpoint's address.
func endpoint(address string) string {
	return `{"endpoints":[{"addresses":["` + address + `"]}]}`
}

func TestEndpointSlice(t *testing.T) {
	creates(t, baseSlice, EndpointSlice, []row{
		{"valid", `{}`, nil},
		{"of six", `{"addressType":"IPv6","endpoints":[{"addresses":["fd00::1"]}]}`, nil},
		{"empty", `{"endpoints":null,"ports":null}`, nil},
		{"any port", `{"ports":[{}]}`, nil},
		{"everything", `{"endpoints":[{"addresses":["10.0.0.1","10.0.0.2"],"hostname":"a","hints":{"forZones":[{"name":"z"}],"forNodes":[{"name":"n1"}]},"deprecatedTopology":{"a":"b"}}],"ports":[{"name":"a","protocol":"UDP","port":1,"appProtocol":"http"},{"name":"b"}]}`, nil},

		{"no type", `{"addressType":""}`, []string{`addressType: Required value`}},
		{"bad type", `{"addressType":"IP"}`, []string{`addressType: Unsupported value: "IP": supported values: "IPv4", "IPv6"`}},
		{"not yet: names", `{"addressType":"FQDN","endpoints":null}`, []string{`addressType: Unsupported value: "FQDN": not supported yet by Fairlead: traffic is forwarded to addresses; use "IPv4" or "IPv6", or a Service of type ExternalName`}},
		{"SCTP", `{"ports":[{"protocol":"SCTP"}]}`, nil},
		{"no address", `{"endpoints":[{"addresses":[]}]}`, []string{`endpoints[0].addresses: Required value: must contain at least 1 address`}},
		{"bad address", endpoint("x"), []string{`endpoints[0].addresses[0]: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)`}},
		{"six in a slice of four", endpoint("fd00::1"), []string{`endpoints[0].addresses[0]: Invalid value: "fd00::1": must be an IPv4 address`}},
		{"four in a slice of six", `{"addressType":"IPv6"}`, []string{`endpoints[0].addresses[0]: Invalid value: "10.244.1.2": must be an IPv6 address`}},
		{"unspecified", endpoint("0.0.0.0"), []string{`endpoints[0].addresses[0]: Invalid value: "0.0.0.0": may not be unspecified (0.0.0.0)`}},
		{"loopback", endpoint("127.0.0.1"), []string{`endpoints[0].addresses[0]: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)`}},
		{"link-local", endpoint("169.254.1.1"), []string{`endpoints[0].addresses[0]: Invalid value: "169.254.1.1": may not be in the link-local range (169.254.0.0/16, fe80::/10)`}},
		{"link-local multicast", endpoint("224.0.0.1"), []string{`endpoints[0].addresses[0]: Invalid value: "224.0.0.1": may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)`}},
		{"multicast", endpoint("239.1.1.1"), []string{`endpoints[0].addresses[0]: Invalid value: "239.1.1.1": may not be a multicast address`}},
		{"too many addresses", `{"endpoints":[{"addresses":[` + strings.TrimSuffix(strings.Repeat(`"10.0.0.1",`, 101), ",") + `]}]}`, []string{`endpoints[0].addresses: Too many: 101: must have at most 100 items`}},
		{"names", `{"endpoints":[{"addresses":["10.0.0.1"],"hostname":"A","nodeName":"N"}]}`, []string{`endpoints[0].nodeName: Invalid value: "N": ` + subdomainRule, `endpoints[0].hostname: Invalid value: "A": ` + labelRule}},
		{"hints", `{"endpoints":[{"addresses":["10.0.0.1"],"hints":{"forZones":[{"name":"a"},{"name":"a"}],"forNodes":[{"name":"N"},{"name":"N"}]}}]}`, []string{
			`endpoints[0].hints.forZones[1].name: Duplicate value: "a"`,
			`endpoints[0].hints.forNodes[0].name: Invalid value: "N": ` + subdomainRule,
			`endpoints[0].hints.forNodes[1].name: Invalid value: "N": ` + subdomainRule,
			`endpoints[0].hints.forNodes[1].name: Duplicate value: "N"`}},
		{"port twice", `{"ports":[{"port":1},{"port":2}]}`, []string{`ports[1].name: Duplicate value: ""`}},
		{"bad ports", `{"ports":[{"name":"A","port":0,"protocol":"x","appProtocol":"a b"}]}`, []string{
			`ports[0].name: Invalid value: "A": ` + labelRule,
			`ports[0].protocol: Unsupported value: "x": supported values: "SCTP", "TCP", "UDP"`,
			`ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive`,
			`ports[0].appProtocol: Invalid value: "a b": name part must consist of…`}},
	})
	t.Run("ports that nobody defaulted", func(t *testing.T) {
		s := object[discoveryv1.EndpointSlice](t, baseSlice)
		s.Ports = []discoveryv1.EndpointPort{{}}
		check(t, EndpointSlice(s), []string{`ports[0].name: Required value`, `ports[0].protocol: Required value`})
	})
	t.Run("too many", func(t *testing.T) {
		s := object[discoveryv1.EndpointSlice](t, baseSlice)
		s.Endpoints = make([]discoveryv1.Endpoint, 1001)
		s.Ports = make([]discoveryv1.EndpointPort, 20001)
		check(t, EndpointSlice(s), []string{`endpoints: Too many: 1001: must have at most 1000 items`, `ports: Too many: 20001: must have at most 20000 items`})
	})
	t.Run("too many hints", func(t *testing.T) {
		s := object[discoveryv1.EndpointSlice](t, baseSlice)
		s.Endpoints[0].Hints = &discoveryv1.EndpointHints{}
		for i := range 9 {
			s.Endpoints[0].Hints.ForZones = append(s.Endpoints[0].Hints.ForZones, discoveryv1.ForZone{Name: fmt.Sprint("z", i)})
			s.Endpoints[0].Hints.ForNodes = append(s.Endpoints[0].Hints.ForNodes, discoveryv1.ForNode{Name: fmt.Sprint("n", i)})
		}
		check(t, EndpointSlice(s), []string{`endpoints[0].hints.forZones: Too many: 9: must have at most 8 items`, `endpoints[0].hints.forNodes: Too many: 9: must have at most 8 items`})
	})
	updates(t, baseSlice, EndpointSliceUpdate, []change{
		{"endpoints", `{}`, endpoint("10.244.1.3"), nil},
		{"type", `{}`, `{"addressType":"IPv6","endpoints":null}`, []string{`addressType: Invalid value: "IPv6": field is immutable`}},
		{"bad endpoint", `{}`, endpoint("127.0.0.1"), []string{`endpoints[0].addresses[0]: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)`}},
	})
}

func TestServiceCIDR(t *testing.T) {
	const base = `{"metadata":{"name":"kubernetes"},"spec":{"cidrs":["10.96.0.0/16"]}}`
	creates(t, base, ServiceCIDR, []row{
		{"valid", `{}`, nil},
		{"two", `{"spec":{"cidrs":["fd00:96::/112","10.96.0.0/16"]}}`, nil},
		{"another", `{"metadata":{"name":"more"}}`, nil},
		{"too small", `{"spec":{"cidrs":["10.96.0.0/31"]}}`, []string{`spec.cidrs[0]: Unsupported value: "10.96.0.0/31": not supported yet by Fairlead: a range needs room for the network's own address and two Services`}},
		{"in a namespace", `{"metadata":{"namespace":"shop"}}`, []string{`metadata.namespace: Forbidden: not allowed on this type`}},
		{"none", `{"spec":{"cidrs":null}}`, []string{`spec.cidrs: Required value: at least one CIDR required`}},
		{"three", `{"spec":{"cidrs":["10.96.0.0/16","fd00::/112","10.97.0.0/16"]}}`, []string{`spec.cidrs: Invalid value: ["10.96.0.0/16","fd00::/112","10.97.0.0/16"]: may only hold up to 2 values`}},
		{"two of one family", `{"spec":{"cidrs":["10.96.0.0/16","10.97.0.0/16"]}}`, []string{`spec.cidrs: Invalid value: ["10.96.0.0/16","10.97.0.0/16"]: may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64`}},
		{"no network", `{"spec":{"cidrs":["10.96.0.0"]}}`, []string{`spec.cidrs[0]: Invalid value: "10.96.0.0": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)`}},
		{"host bits", `{"spec":{"cidrs":["10.96.0.1/16"]}}`, []string{`spec.cidrs[0]: Invalid value: "10.96.0.1/16": must not have bits set beyond the prefix length`}},
	})
	updates(t, base, ServiceCIDRUpdate, []change{
		{"labels", `{}`, `{"metadata":{"labels":{"a":"b"}}}`, nil},
		{"range", `{}`, `{"spec":{"cidrs":["10.97.0.0/16"]}}`, []string{`spec.cidrs[0]: Invalid value: "10.97.0.0/16": field is immutable`}},
		{"second family", `{}`, `{"spec":{"cidrs":["10.96.0.0/16","fd00::/112"]}}`, nil},
		{"second family in front", `{}`, `{"spec":{"cidrs":["fd00::/112","10.96.0.0/16"]}}`, []string{`spec.cidrs[0]: Invalid value: "fd00::/112": field is immutable`}},
		{"second of one family", `{}`, `{"spec":{"cidrs":["10.96.0.0/16","10.97.0.0/16"]}}`, []string{`spec.cidrs: Invalid value: ["10.96.0.0/16","10.97.0.0/16"]: may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64`}},
		{"range taken away", `{"spec":{"cidrs":["10.96.0.0/16","fd00::/112"]}}`, `{"spec":{"cidrs":["10.96.0.0/16"]}}`, []string{`spec.cidrs: Invalid value: ["10.96.0.0/16"]: field is immutable`}},
	})
	updates(t, base, ServiceCIDRStatusUpdate, []change{
		{"ready", `{}`, `{"status":{"conditions":[{"type":"Ready","status":"True","reason":"Ready","lastTransitionTime":"2025-01-01T00:00:00Z"}]}}`, nil},
		{"no reason", `{}`, `{"status":{"conditions":[{"type":"Ready","status":"True","lastTransitionTime":"2025-01-01T00:00:00Z"}]}}`, []string{`status.conditions[0].reason: Required value`}},
	})
}

func TestIPAddress(t *testing.T) {
	const base = `{"metadata":{"name":"10.96.0.9"},"spec":{"parentRef":{"resource":"services","namespace":"shop","name":"orders"}}}`
	creates(t, base, IPAddress, []row{
		{"valid", `{}`, nil},
		{"of six", `{"metadata":{"name":"fd00:96::9"}}`, nil},
		{"of a group, clustered", `{"spec":{"parentRef":{"group":"a.example","namespace":null}}}`, nil},
		{"no address", `{"metadata":{"name":"orders"}}`, []string{`metadata.name: Invalid value: "orders": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)`}},
		{"not canonical", `{"metadata":{"name":"fd00:96:0::9"}}`, []string{`metadata.name: Invalid value: "fd00:96:0::9": must be in canonical form ("fd00:96::9")`}},
		{"leading zeros", `{"metadata":{"name":"10.96.0.09"}}`, []string{`metadata.name: Invalid value: "10.96.0.09": must not have leading 0s`}},
		{"no parent", `{"spec":{"parentRef":null}}`, []string{`spec.parentRef: Required value`}},
		{"empty parent", `{"spec":{"parentRef":{"resource":null,"name":null}}}`, []string{`spec.parentRef.resource: Required value`, `spec.parentRef.name: Required value`}},
		{"bad parent", `{"spec":{"parentRef":{"group":"A","resource":"a/b","name":"..","namespace":"%"}}}`, []string{
			`spec.parentRef.group: Invalid value: "A": ` + subdomainRule,
			`spec.parentRef.resource: Invalid value: "a/b": may not contain '/'`,
			`spec.parentRef.name: Invalid value: "..": may not be '..'`,
			`spec.parentRef.namespace: Invalid value: "%": may not contain '%'`}},
	})
	updates(t, base, IPAddressUpdate, []change{
		{"labels", `{}`, `{"metadata":{"labels":{"a":"b"}}}`, nil},
		{"parent", `{}`, `{"spec":{"parentRef":{"name":"other"}}}`, []string{`spec.parentRef: Invalid value: {"resource":"services","namespace":"shop","name":"other"}: field is immutable`}},
	})
}

func TestNetworkFieldsAreDecided(t *testing.T) {
	decided[discoveryv1.EndpointSlice](t, []string{"TypeMeta", "ObjectMeta", "AddressType", "Endpoints", "Ports"})
	decided[discoveryv1.Endpoint](t, []string{"Addresses", "Hostname", "DeprecatedTopology", "NodeName", "Hints"}, []string{"Conditions", "TargetRef", "Zone"})
	decided[networkingv1.ServiceCIDRSpec](t, []string{"CIDRs"})
	decided[networkingv1.IPAddressSpec](t, []string{"ParentRef"})
}
