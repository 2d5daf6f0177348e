// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package validation

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestNamespace(t *testing.T) {
	const base = `{"metadata":{"name":"shop"},"spec":{"finalizers":["kubernetes"]}}`
	creates(t, base, Namespace, []row{
		{"valid", `{}`, nil},
		{"more finalizers", `{"spec":{"finalizers":["kubernetes","a.example/b"]}}`, nil},
		{"bad name", `{"metadata":{"name":"a.b"}}`, []string{`metadata.name: Invalid value: "a.b": must not contain dots`}},
		{"upper case", `{"metadata":{"name":"Shop"}}`, []string{`metadata.name: Invalid value: "Shop": ` + labelRule}},
		{"bad finalizers", `{"spec":{"finalizers":["other","a b/c"]}}`, []string{
			`spec.finalizers[0]: Invalid value: "other": name is neither a standard finalizer name nor is it fully qualified`,
			`spec.finalizers[1]: Invalid value: "a b/c": prefix part a lowercase RFC 1123 subdomain must consist of…`}},
	})
	updates(t, base, NamespaceUpdate, []change{
		{"finalized", `{}`, `{"spec":{"finalizers":null}}`, nil},
		{"bad finalizer", `{}`, `{"spec":{"finalizers":["other"]}}`, []string{`spec.finalizers[0]: Invalid value: "other": name is neither a standard finalizer name nor is it fully qualified`}},
		{"bad label", `{}`, `{"metadata":{"labels":{"a b":"c"}}}`, []string{`metadata.labels: Invalid value: "a b": name part must consist of…`}},
	})
	const going = `{"metadata":{"deletionTimestamp":"2025-01-01T00:00:00Z"}}`
	updates(t, base, NamespaceStatusUpdate, []change{
		{"active", `{}`, `{"status":{"phase":"Active"}}`, nil},
		{"terminating", going, `{"status":{"phase":"Terminating"}}`, nil},
		{"terminating, but not deleted", `{}`, `{"status":{"phase":"Terminating"}}`, []string{"status.phase: Invalid value: \"Terminating\": may only be 'Active' if `deletionTimestamp` is empty"}},
		{"active, but deleted", going, `{"status":{"phase":"Active"}}`, []string{"status.phase: Invalid value: \"Active\": may only be 'Terminating' if `deletionTimestamp` is not empty"}},
	})
}

func TestNode(t *testing.T) {
	const base = `{"metadata":{"name":"n1"},"spec":{"podCIDR":"10.244.1.0/24","podCIDRs":["10.244.1.0/24"]}}`
	creates(t, base, Node, []row{
		{"valid", `{}`, nil},
		{"no range yet", `{"spec":null}`, nil},
		{"two ranges", `{"spec":{"podCIDRs":["10.244.1.0/24","fd00:244::/64"]}}`, nil},
		{"tainted", `{"spec":{"unschedulable":true,"taints":[{"key":"a","effect":"NoSchedule"},{"key":"a","value":"b","effect":"NoExecute"}]}}`, nil},
		{"bad name", `{"metadata":{"name":"N"}}`, []string{`metadata.name: Invalid value: "N": ` + subdomainRule}},
		{"first range is another", `{"spec":{"podCIDR":"10.244.2.0/24"}}`, []string{"spec.podCIDRs[0]: Invalid value: [\"10.244.1.0/24\"]: first value must match `podCIDR`"}},
		{"range only in one field", `{"spec":{"podCIDRs":null}}`, []string{"spec.podCIDRs[0]: Invalid value: null: first value must match `podCIDR`"}},
		{"no range", `{"spec":{"podCIDR":"x","podCIDRs":["x"]}}`, []string{`spec.podCIDRs[0]: Invalid value: "x": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)`}},
		{"two ranges of one family", `{"spec":{"podCIDRs":["10.244.1.0/24","10.244.2.0/24"]}}`, []string{`spec.podCIDRs: Invalid value: ["10.244.1.0/24","10.244.2.0/24"]: may specify no more than one CIDR for each IP family`}},
		{"not yet", `{"spec":{"configSource":{},"podPreemptionPolicy":{}}}`, []string{
			`spec.configSource: Forbidden: not supported yet by Fairlead: a node's settings are given when it is started`,
			`spec.podPreemptionPolicy: Forbidden: not supported yet by Fairlead: all pods are alike`}},
		{"taints", `{"spec":{"taints":[{"key":"a b","value":"c d","effect":"x"},{"key":"a"},{"key":"b","effect":"NoSchedule"},{"key":"b","value":"c","effect":"NoSchedule"}]}}`, []string{
			`spec.taints[0].key: Invalid value: "a b": name part must consist of…`,
			`spec.taints[0].value: Invalid value: "c d": a valid label must be…`,
			`spec.taints[0].effect: Unsupported value: "x": supported values: "NoExecute", "NoSchedule", "PreferNoSchedule"`,
			`spec.taints[1].effect: Required value`,
			`spec.taints[3]: Duplicate value: {"key":"b","value":"c","effect":"NoSchedule"}: taints must be unique by key and effect pair`}},
	})
	updates(t, base, NodeUpdate, []change{
		{"labels, taints, status", `{}`, `{"metadata":{"labels":{"a":"b"}},"spec":{"unschedulable":true,"taints":[{"key":"a","effect":"NoSchedule"}]},"status":{"conditions":[{"type":"Ready","status":"True"}],"addresses":[{"type":"InternalIP","address":"172.30.0.11"}]}}`, nil},
		{"range given", `{"spec":{"podCIDR":null,"podCIDRs":null}}`, `{"spec":{"podCIDR":"10.244.1.0/24","podCIDRs":["10.244.1.0/24"],"providerID":"a"}}`, nil},
		{"range exchanged", `{}`, `{"spec":{"podCIDR":"10.244.2.0/24","podCIDRs":["10.244.2.0/24"]}}`, []string{`spec.podCIDRs: Forbidden: node updates may not change podCIDR except from "" to valid`}},
		{"provider exchanged", `{"spec":{"providerID":"a"}}`, `{"spec":{"providerID":"b"}}`, []string{`spec.providerID: Forbidden: node updates may not change providerID except from "" to valid`}},
		{"address twice", `{}`, `{"status":{"addresses":[{"type":"InternalIP","address":"a"},{"type":"InternalIP","address":"a"}]}}`, []string{`status.addresses[1]: Duplicate value: {"type":"InternalIP","address":"a"}`}},
		{"something else", `{}`, `{"spec":{"externalID":"a"}}`, []string{`spec: Forbidden: node updates may only change labels, taints, or capacity`}},
	})
}

func TestConfigMap(t *testing.T) {
	const base = `{"metadata":{"name":"settings","namespace":"shop"},"data":{"a.b":"c"}}`
	creates(t, base, ConfigMap, []row{
		{"valid", `{}`, nil},
		{"binary", `{"binaryData":{"b":"AAAA"}}`, nil},
		{"empty", `{"data":null}`, nil},
		{"bad keys", `{"data":{"..":"","a b":""},"binaryData":{"c/d":""}}`, []string{
			`data[..]: Invalid value: "..": must not be '..'`,
			`data[a b]: Invalid value: "a b": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')`,
			`binaryData[c/d]: Invalid value: "c/d": a valid config key must consist of…`}},
		{"key twice", `{"binaryData":{"a.b":""}}`, []string{`data[a.b]: Invalid value: "a.b": duplicate of key present in binaryData`}},
		{"too much", `{"data":{"x":"` + strings.Repeat("y", 1<<20) + `"}}`, []string{`[]: Too long: may not be more than 1048576 bytes`}},
	})
	const fixed = `{"immutable":true}`
	updates(t, base, ConfigMapUpdate, []change{
		{"data", `{}`, `{"data":{"x":"y"}}`, nil},
		{"fixed", `{}`, fixed, nil},
		{"fixed, labels", fixed, `{"metadata":{"labels":{"a":"b"}}}`, nil},
		{"fixed, everything", fixed, `{"immutable":null,"data":{"x":"y"},"binaryData":{"z":"AAAA"}}`, []string{
			"immutable: Forbidden: field is immutable when `immutable` is set",
			"data: Forbidden: field is immutable when `immutable` is set",
			"binaryData: Forbidden: field is immutable when `immutable` is set"}},
	})
}

func TestEvent(t *testing.T) {
	const base = `{"metadata":{"name":"orders.1","namespace":"shop"},"involvedObject":{"kind":"Pod","namespace":"shop","name":"orders"}}`
	const modern = `"eventTime":"2025-01-01T00:00:00.000000Z","reportingComponent":"a.example/b","reportingInstance":"i","action":"c","reason":"d"`
	creates(t, base, Event, []row{
		{"valid", `{}`, nil},
		{"about a node", `{"metadata":{"namespace":"default"},"involvedObject":{"kind":"Node","namespace":null}}`, nil},
		{"of the newer form", `{` + modern + `}`, nil},
		{"about another namespace", `{"involvedObject":{"namespace":"b"}}`, []string{`involvedObject.namespace: Invalid value: "b": does not match event.namespace`}},
		{"about a node, in a namespace", `{"involvedObject":{"namespace":null}}`, []string{`involvedObject.namespace: Invalid value: "": does not match event.namespace`}},
		{"of the newer form, empty", `{"eventTime":"2025-01-01T00:00:00.000000Z"}`, []string{`reportingController: Required value`, `reportingInstance: Required value`, `action: Required value`, `reason: Required value`}},
		{"of the newer form, too long", `{` + modern + `,"message":"` + strings.Repeat("x", 1025) + `","action":"` + strings.Repeat("x", 129) + `","reportingComponent":"a b"}`, []string{
			`reportingController: Invalid value: "a b": name part must consist of…`,
			`action: Invalid value: "": can have at most 128 characters`,
			`message: Invalid value: "": can have at most 1024 characters`}},
	})
	updates(t, base, EventUpdate, []change{
		{"counted", `{}`, `{"count":2}`, nil},
		{"about something else", `{}`, `{"involvedObject":{"namespace":"b"}}`, []string{`involvedObject.namespace: Invalid value: "b": does not match event.namespace`}},
	})
}

func TestLease(t *testing.T) {
	const base = `{"metadata":{"name":"n1","namespace":"kube-node-lease"},"spec":{"holderIdentity":"n1","leaseDurationSeconds":40}}`
	creates(t, base, Lease, []row{
		{"valid", `{}`, nil},
		{"released", `{"spec":{"holderIdentity":""}}`, nil},
		{"numbers", `{"spec":{"leaseDurationSeconds":0,"leaseTransitions":-1}}`, []string{`spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0`, `spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0`}},
		{"not yet: coordinated", `{"spec":{"strategy":"OldestEmulationVersion","preferredHolder":"a"}}`, []string{
			`spec.strategy: Forbidden: not supported yet by Fairlead: the holder is chosen by its clients; leave it out`,
			`spec.preferredHolder: Forbidden: not supported yet by Fairlead: the holder is chosen by its clients; leave it out`}},
	})
	updates(t, base, LeaseUpdate, []change{
		{"renewed", `{}`, `{"spec":{"renewTime":"2025-01-01T00:00:00.000000Z"}}`, nil},
		{"bad", `{}`, `{"spec":{"leaseDurationSeconds":-1}}`, []string{`spec.leaseDurationSeconds: Invalid value: -1: must be greater than 0`}},
	})
}

func TestCoreFieldsAreDecided(t *testing.T) {
	decided[corev1.NodeSpec](t, []string{"PodCIDR", "PodCIDRs", "ProviderID", "Unschedulable", "Taints"},
		[]string{"DoNotUseExternalID"},                  // without meaning
		[]string{"ConfigSource", "PodPreemptionPolicy"}) // refused
	decided[corev1.ConfigMap](t, []string{"TypeMeta", "ObjectMeta", "Immutable", "Data", "BinaryData"})
	decided[corev1.NamespaceSpec](t, []string{"Finalizers"})
}
