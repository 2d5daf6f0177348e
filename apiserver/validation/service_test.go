// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package validation

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// A Service as the allocator leaves it.
const baseService = `{"metadata":{"name":"orders","namespace":"shop"},"spec":{
	"selector":{"app":"orders"},"ports":[{"name":"http","port":80,"targetPort":"web"}],
	"clusterIP":"10.96.0.9","clusterIPs":["10.96.0.9"],"ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack"}}`

// noAddresses takes the allocator's work away.
const noAddresses = `"clusterIP":null,"clusterIPs":null,"ipFamilies":null,"ipFamilyPolicy":null`

const labelRule = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"

const subdomainRule = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"

func TestService(t *testing.T) {
	creates(t, baseService, Service, []row{
		{"valid", `{}`, nil},
		{"no selector", `{"spec":{"selector":null}}`, nil},
		{"several ports", `{"spec":{"ports":[{"name":"a","port":53,"protocol":"UDP"},{"name":"b","port":53},{"name":"c","port":65535,"targetPort":1}]}}`, nil},
		{"one port without name", `{"spec":{"ports":[{"port":80}]}}`, nil},
		{"no addresses yet", `{"spec":{` + noAddresses + `}}`, nil},
		{"headless", `{"spec":{"clusterIP":"None","clusterIPs":["None"]}}`, nil},
		{"headless without ports", `{"spec":{"clusterIP":"None","clusterIPs":["None"],"ports":null}}`, nil},
		{"external name", `{"spec":{"type":"ExternalName","externalName":"db.example.com",` + noAddresses + `}}`, nil},
		{"external name fully qualified", `{"spec":{"type":"ExternalName","externalName":"db.example.com.","ports":null,` + noAddresses + `}}`, nil},
		{"publish not ready", `{"spec":{"publishNotReadyAddresses":true}}`, nil},
		{"application protocol", `{"spec":{"ports":[{"port":80,"appProtocol":"kubernetes.io/h2c"}]}}`, nil},
		{"dual stack", `{"spec":{"clusterIPs":["10.96.0.9","fd00:96::9"],"ipFamilies":["IPv4","IPv6"],"ipFamilyPolicy":"RequireDualStack"}}`, nil},

		{"no name", `{"metadata":{"name":""}}`, []string{`metadata.name: Required value: name or generateName is required`}},
		{"name starts with a digit", `{"metadata":{"name":"1st"}}`, nil},
		{"bad name", `{"metadata":{"name":"Orders"}}`, []string{`metadata.name: Invalid value: "Orders": ` + labelRule}},
		{"name too long", `{"metadata":{"name":"a23456789-123456789-123456789-123456789-123456789-123456789-1234"}}`, []string{`metadata.name: Invalid value: "a23456789-123456789-123456789-123456789-123456789-123456789-1234": must be no more than 63 characters`}},
		{"no namespace", `{"metadata":{"namespace":""}}`, []string{`metadata.namespace: Required value`}},
		{"bad label", `{"metadata":{"labels":{"a":"b c"}}}`, []string{`metadata.labels: Invalid value: "b c": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')`}},
		{"bad selector", `{"spec":{"selector":{"app":"a/b"}}}`, []string{`spec.selector: Invalid value: "a/b": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')`}},

		{"no ports", `{"spec":{"ports":null}}`, []string{`spec.ports: Required value`}},
		{"port too large", `{"spec":{"ports":[{"port":70000,"targetPort":80}]}}`, []string{`spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive`}},
		{"port too large for its target too", `{"spec":{"ports":[{"port":70000}]}}`, []string{`spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive`, `spec.ports[0].targetPort: Invalid value: 70000: must be between 1 and 65535, inclusive`}},
		{"port zero", `{"spec":{"ports":[{"targetPort":80}]}}`, []string{`spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive`}},
		{"target port too large", `{"spec":{"ports":[{"port":80,"targetPort":65536}]}}`, []string{`spec.ports[0].targetPort: Invalid value: 65536: must be between 1 and 65535, inclusive`}},
		{"target port name without letter", `{"spec":{"ports":[{"port":80,"targetPort":"8080"}]}}`, []string{`spec.ports[0].targetPort: Invalid value: "8080": must contain at least one letter (a-z)`}},
		{"target port name too long", `{"spec":{"ports":[{"port":80,"targetPort":"abcdefghijklmnop"}]}}`, []string{`spec.ports[0].targetPort: Invalid value: "abcdefghijklmnop": must be no more than 15 characters`}},
		{"duplicate port names", `{"spec":{"ports":[{"name":"http","port":80},{"name":"http","port":81}]}}`, []string{`spec.ports[1].name: Duplicate value: "http"`}},
		{"missing port names", `{"spec":{"ports":[{"port":80},{"port":81}]}}`, []string{`spec.ports[0].name: Required value`, `spec.ports[1].name: Required value`}},
		{"bad port name", `{"spec":{"ports":[{"name":"Web","port":80}]}}`, []string{`spec.ports[0].name: Invalid value: "Web": ` + labelRule}},
		{"duplicate port numbers", `{"spec":{"ports":[{"name":"a","port":80},{"name":"b","port":80}]}}`, []string{`spec.ports[1]: Duplicate value: {"protocol":"TCP","port":80,"targetPort":0}`}},
		{"bad protocol", `{"spec":{"ports":[{"port":80,"protocol":"tcp"}]}}`, []string{`spec.ports[0].protocol: Unsupported value: "tcp": supported values: "SCTP", "TCP", "UDP"`}},
		{"bad application protocol", `{"spec":{"ports":[{"port":80,"appProtocol":"a b"}]}}`, []string{`spec.ports[0].appProtocol: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')`}},
		{"node port", `{"spec":{"ports":[{"port":80,"nodePort":30080}]}}`, []string{"spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"}},

		{"first of clusterIPs is another", `{"spec":{"clusterIP":"10.96.0.8"}}`, []string{"spec.clusterIPs: Invalid value: [\"10.96.0.9\"]: first value must match `clusterIP`"}},
		{"clusterIPs without clusterIP", `{"spec":{"clusterIP":null}}`, []string{"spec.clusterIPs: Invalid value: [\"10.96.0.9\"]: must be empty when `clusterIP` is not specified"}},
		{"clusterIP without clusterIPs", `{"spec":{"clusterIPs":null}}`, []string{`spec.clusterIPs: Required value`}},
		{"clusterIP is no address", `{"spec":{"clusterIP":"x","clusterIPs":["x"]}}`, []string{`spec.clusterIPs[0]: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)`}},
		{"clusterIP with leading zeros", `{"spec":{"clusterIP":"10.096.0.9","clusterIPs":["10.096.0.9"]}}`, []string{`spec.clusterIPs[0]: Invalid value: "10.096.0.9": must not have leading 0s`}},
		{"clusterIP not canonical", `{"spec":{"clusterIP":"fd00:0::9","clusterIPs":["fd00:0::9"],"ipFamilies":["IPv6"]}}`, []string{`spec.clusterIPs[0]: Invalid value: "fd00:0::9": must be in canonical form ("fd00::9")`}},
		{"clusterIP mapped", `{"spec":{"clusterIP":"::ffff:10.96.0.9","clusterIPs":["::ffff:10.96.0.9"]}}`, []string{`spec.clusterIPs[0]: Invalid value: "::ffff:10.96.0.9": must not be an IPv4-mapped IPv6 address`}},
		{"None is not the only one", `{"spec":{"clusterIP":"None","clusterIPs":["None","10.96.0.9"]}}`, []string{`spec.clusterIPs: Invalid value: ["None","10.96.0.9"]: 'None' must be the first and only value`}},
		{"None is the second", `{"spec":{"clusterIPs":["10.96.0.9","None"]}}`, []string{`spec.clusterIPs[1]: Invalid value: "None": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)`}},
		{"two of one family", `{"spec":{"clusterIPs":["10.96.0.9","10.96.0.10"]}}`, []string{`spec.clusterIPs: Invalid value: ["10.96.0.9","10.96.0.10"]: may specify no more than one IP for each IP family`}},
		{"three", `{"spec":{"clusterIPs":["10.96.0.9","fd00::9","10.96.0.10"]}}`, []string{`spec.clusterIPs: Invalid value: ["10.96.0.9","fd00::9","10.96.0.10"]: may only hold up to 2 values`, `spec.clusterIPs: Invalid value: ["10.96.0.9","fd00::9","10.96.0.10"]: may specify no more than one IP for each IP family`}},
		{"not the family", `{"spec":{"ipFamilies":["IPv6"]}}`, []string{"spec.clusterIPs[0]: Invalid value: \"10.96.0.9\": expected an IPv6 value as indicated by `ipFamilies[0]`"}},
		{"bad family", `{"spec":{"ipFamilies":["IPv4","IPv5"]}}`, []string{`spec.ipFamilies[1]: Unsupported value: "IPv5": supported values: "IPv4", "IPv6"`}},
		{"family twice", `{"spec":{"ipFamilies":["IPv4","IPv4"]}}`, []string{`spec.ipFamilies[1]: Duplicate value: "IPv4"`}},
		{"bad family policy", `{"spec":{"ipFamilyPolicy":"Both"}}`, []string{`spec.ipFamilyPolicy: Unsupported value: "Both": supported values: "PreferDualStack", "RequireDualStack", "SingleStack"`}},

		{"external name missing", `{"spec":{"type":"ExternalName",` + noAddresses + `}}`, []string{`spec.externalName: Required value`}},
		{"external name is no name", `{"spec":{"type":"ExternalName","externalName":"a_b",` + noAddresses + `}}`, []string{`spec.externalName: Invalid value: "a_b": ` + subdomainRule}},
		{"external name with addresses", `{"spec":{"type":"ExternalName","externalName":"a.example"}}`, []string{`spec.clusterIPs: Forbidden: may not be set for ExternalName services`, `spec.ipFamilies: Forbidden: may not be set for ExternalName services`, `spec.ipFamilyPolicy: Forbidden: may not be set for ExternalName services`}},
		{"unknown type", `{"spec":{"type":"Cluster"}}`, []string{`spec.type: Unsupported value: "Cluster": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort"`}},
		{"external policy", `{"spec":{"externalTrafficPolicy":"Local"}}`, []string{`spec.externalTrafficPolicy: Invalid value: "Local": may only be set for externally-accessible services`}},
		{"health check port", `{"spec":{"healthCheckNodePort":1}}`, []string{"spec.healthCheckNodePort: Invalid value: 1: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"}},
	})
}

func TestServiceUpdate(t *testing.T) {
	const dual = `{"spec":{"clusterIPs":["10.96.0.9","fd00:96::9"],"ipFamilies":["IPv4","IPv6"],"ipFamilyPolicy":"PreferDualStack"}}`
	const none = `{"spec":{"clusterIP":"None","clusterIPs":["None"]}}`
	const name = `{"spec":{"type":"ExternalName","externalName":"a.example","internalTrafficPolicy":null,` + noAddresses + `}}`
	updates(t, baseService, ServiceUpdate, []change{
		{"nothing", `{}`, `{}`, nil},
		{"ports and selector", `{}`, `{"spec":{"ports":[{"port":81}],"selector":{"a":"b"}}}`, nil},
		{"labels", `{}`, `{"metadata":{"labels":{"a":"b"}}}`, nil},
		{"upgraded", `{}`, dual, nil},
		{"downgraded", dual, `{"spec":{"clusterIPs":["10.96.0.9"],"ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack"}}`, nil},
		{"to external name", `{}`, name, nil},
		{"from external name", name, `{"spec":{"type":"ClusterIP","externalName":null,"clusterIP":"10.96.0.10","clusterIPs":["10.96.0.10"],"ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack"}}`, nil},
		{"headless changes its families", none, `{"spec":{"ipFamilies":["IPv6","IPv4"],"ipFamilyPolicy":"RequireDualStack"}}`, nil},
		{"secondary is taken from old policy", dual, `{"spec":{"clusterIPs":["10.96.0.9"],"ipFamilies":["IPv4"]}}`, []string{
			`spec.ipFamilyPolicy: Invalid value: "PreferDualStack": must be set to 'SingleStack' when releasing the secondary clusterIP`,
			`spec.ipFamilyPolicy: Invalid value: "PreferDualStack": must be set to 'SingleStack' when releasing the secondary ipFamily`}},

		{"address", `{}`, `{"spec":{"clusterIP":"10.96.0.10","clusterIPs":["10.96.0.10"]}}`, []string{`spec.clusterIPs[0]: Invalid value: ["10.96.0.10"]: may not change once set`}},
		{"secondary address", dual, `{"spec":{"clusterIPs":["10.96.0.9","fd00:96::a"]}}`, []string{`spec.clusterIPs[1]: Invalid value: ["10.96.0.9","fd00:96::a"]: may not change once set`}},
		{"becomes headless", `{}`, none, []string{`spec.clusterIPs[0]: Invalid value: ["None"]: may not change once set`}},
		{"no longer headless", none, `{"spec":{"clusterIP":"10.96.0.9","clusterIPs":["10.96.0.9"]}}`, []string{`spec.clusterIPs[0]: Invalid value: ["10.96.0.9"]: may not change once set`}},
		{"address given up", `{}`, `{"spec":{"clusterIP":null,"clusterIPs":null}}`, []string{`spec.clusterIPs[0]: Invalid value: null: primary clusterIP can not be unset`}},
		{"family", `{"spec":{"clusterIPs":null,"clusterIP":null}}`, `{"spec":{"ipFamilies":["IPv6"]}}`, []string{`spec.ipFamilies[0]: Invalid value: ["IPv6"]: may not change once set`}},
		{"family given up", `{}`, `{"spec":{"ipFamilies":null}}`, []string{`spec.ipFamilies[0]: Invalid value: null: primary ipFamily can not be unset`}},
		{"name", `{}`, `{"metadata":{"name":"other"}}`, []string{`metadata.name: Invalid value: "other": field is immutable`}},
		{"no version", `{}`, `{"metadata":{"resourceVersion":null}}`, []string{`metadata.resourceVersion: Invalid value: "": must be specified for an update`}},
	})
}

func TestServiceFieldsAreDecided(t *testing.T) {
	decided[corev1.ServiceSpec](t,
		[]string{ // checked
			"Ports", "Selector", "ClusterIP", "ClusterIPs", "Type", "ExternalName", "SessionAffinity", "SessionAffinityConfig",
			"IPFamilies", "IPFamilyPolicy", "InternalTrafficPolicy", "ExternalTrafficPolicy", "TrafficDistribution", "ExternalIPs",
			"LoadBalancerSourceRanges", "LoadBalancerClass", "HealthCheckNodePort", "AllocateLoadBalancerNodePorts"},
		[]string{ // any value will do
			"PublishNotReadyAddresses",
			"LoadBalancerIP"}) // for whoever makes load balancers
	decided[corev1.ServicePort](t, []string{"Name", "Protocol", "AppProtocol", "Port", "TargetPort", "NodePort"})
	decided[corev1.LoadBalancerIngress](t, []string{"IP", "Hostname", "IPMode"},
		[]string{"Ports"}) // what the load balancer's maker says of its own ports
}
