// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package validation

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

const (
	// onNodes is a Service on the nodes' ports as the allocator leaves it.
	onNodes = `"type":"NodePort","ports":[{"name":"http","port":80,"nodePort":30080}]`
	// behind is one behind a load balancer.
	behind = `"type":"LoadBalancer","ports":[{"name":"http","port":80,"nodePort":30080}]`
	// local is one whose load balancer asks the nodes for endpoints.
	local = behind + `,"externalTrafficPolicy":"Local","healthCheckNodePort":30081`
)

func spec(fields string) string { return `{"spec":{` + fields + `}}` }

func TestServiceTypes(t *testing.T) {
	const lbOnly = "may only be used when `type` is 'LoadBalancer'"
	creates(t, baseService, Service, []row{
		{"node port", spec(onNodes), nil},
		{"node port not allocated", spec(`"type":"NodePort"`), nil},
		{"node port local", spec(onNodes + `,"externalTrafficPolicy":"Local"`), nil},
		{"one node port for two protocols", spec(`"type":"NodePort","ports":[{"name":"a","port":53,"nodePort":30053},{"name":"b","port":53,"protocol":"UDP","nodePort":30053}]`), nil},
		{"all protocols", spec(`"ports":[{"name":"a","port":53},{"name":"b","port":53,"protocol":"UDP"},{"name":"c","port":53,"protocol":"SCTP"}]`), nil},
		{"load balancer", spec(behind), nil},
		{"load balancer local", spec(local), nil},
		{"load balancer without node ports", spec(`"type":"LoadBalancer","allocateLoadBalancerNodePorts":false`), nil},
		{"load balancer of a class", spec(behind + `,"loadBalancerClass":"example.com/inner","loadBalancerIP":"192.0.2.1"`), nil},
		{"load balancer sources", spec(behind + `,"loadBalancerSourceRanges":["192.0.2.0/24"," 2001:db8::/32 "]`), nil},
		{"load balancer sources annotated", `{"metadata":{"annotations":{"service.beta.kubernetes.io/load-balancer-source-ranges":"192.0.2.0/24, 10.0.0.0/8"}},"spec":{` + behind + `}}`, nil},
		{"load balancer sources annotated with nothing", `{"metadata":{"annotations":{"service.beta.kubernetes.io/load-balancer-source-ranges":" "}},"spec":{` + behind + `}}`, nil},
		{"load balancer address of no load balancer", spec(`"loadBalancerIP":"192.0.2.1"`), nil},
		{"external addresses", spec(`"externalIPs":["192.0.2.1","2001:db8::1"]`), nil},
		{"external addresses local", spec(`"externalIPs":["192.0.2.1"],"externalTrafficPolicy":"Local"`), nil},

		{"node port none", spec(onNodes + `,"clusterIP":"None","clusterIPs":["None"]`), []string{`spec.clusterIPs[0]: Invalid value: "None": may not be set to 'None' for NodePort services`}},
		{"load balancer none", spec(behind + `,"clusterIP":"None","clusterIPs":["None"]`), []string{`spec.clusterIPs[0]: Invalid value: "None": may not be set to 'None' for LoadBalancer services`}},
		{"node port twice", spec(`"type":"NodePort","ports":[{"name":"a","port":80,"nodePort":30080},{"name":"b","port":81,"nodePort":30080}]`), []string{`spec.ports[1].nodePort: Duplicate value: 30080`}},
		{"no policies", spec(onNodes + `,"internalTrafficPolicy":"","externalTrafficPolicy":"x"`), []string{
			`spec.externalTrafficPolicy: Unsupported value: "x": supported values: "Cluster", "Local"`,
			`spec.internalTrafficPolicy: Unsupported value: "": supported values: "Cluster", "Local"`}},
		{"external policy of an external name", spec(`"type":"ExternalName","externalName":"a.example","externalIPs":["192.0.2.1"],"externalTrafficPolicy":"Local",` + noAddresses), []string{
			`spec.externalTrafficPolicy: Invalid value: "Local": may only be set for externally-accessible services`}},
		{"health check port missing", spec(behind + `,"externalTrafficPolicy":"Local"`), []string{`spec.healthCheckNodePort: Required value`}},
		{"health check port too large", spec(behind + `,"externalTrafficPolicy":"Local","healthCheckNodePort":70000`), []string{`spec.healthCheckNodePort: Invalid value: 70000: must be between 1 and 65535, inclusive`}},
		{"health check port of a node port", spec(onNodes + `,"externalTrafficPolicy":"Local","healthCheckNodePort":30081`), []string{
			"spec.healthCheckNodePort: Invalid value: 30081: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"}},
		{"health check port of policy Cluster", spec(behind + `,"healthCheckNodePort":30081`), []string{
			"spec.healthCheckNodePort: Invalid value: 30081: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"}},
		{"bad class", spec(behind + `,"loadBalancerClass":"a b"`), []string{`spec.loadBalancerClass: Invalid value: "a b": name part must consist of…`}},
		{"load balancer fields of another type", spec(`"loadBalancerSourceRanges":["192.0.2.0/24"],"loadBalancerClass":"a.example/b","allocateLoadBalancerNodePorts":true`), []string{
			"spec.LoadBalancerSourceRanges: Forbidden: " + lbOnly,
			"spec.allocateLoadBalancerNodePorts: Forbidden: " + lbOnly,
			"spec.loadBalancerClass: Forbidden: " + lbOnly}},
		{"source annotation of another type", `{"metadata":{"annotations":{"service.beta.kubernetes.io/load-balancer-source-ranges":""}}}`, []string{
			"metadata.annotations[service.beta.kubernetes.io/load-balancer-source-ranges]: Forbidden: " + lbOnly}},
		{"bad sources", spec(behind + `,"loadBalancerSourceRanges":["192.0.2.1","192.0.2.1/24","010.0.0.0/8","x"]`), []string{
			`spec.LoadBalancerSourceRanges[0]: Invalid value: "192.0.2.1": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)`,
			`spec.LoadBalancerSourceRanges[1]: Invalid value: "192.0.2.1/24": must not have bits set beyond the prefix length`,
			`spec.LoadBalancerSourceRanges[2]: Invalid value: "010.0.0.0/8": must not have leading 0s in IP or prefix length`,
			`spec.LoadBalancerSourceRanges[3]: Invalid value: "x": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)`}},
		{"bad sources annotated", `{"metadata":{"annotations":{"service.beta.kubernetes.io/load-balancer-source-ranges":"192.0.2.0/24, x"}},"spec":{` + behind + `}}`, []string{
			`metadata.annotations[service.beta.kubernetes.io/load-balancer-source-ranges]: Invalid value: "x": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)`}},
		{"bad external addresses", spec(`"externalIPs":["x","127.0.0.1","::","169.254.0.1","224.0.0.1","fe80::1","010.0.0.1"]`), []string{
			`spec.externalIPs[0]: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)`,
			`spec.externalIPs[1]: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)`,
			`spec.externalIPs[2]: Invalid value: "::": may not be unspecified (::)`,
			`spec.externalIPs[3]: Invalid value: "169.254.0.1": may not be in the link-local range (169.254.0.0/16, fe80::/10)`,
			`spec.externalIPs[4]: Invalid value: "224.0.0.1": may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)`,
			`spec.externalIPs[5]: Invalid value: "fe80::1": may not be in the link-local range (169.254.0.0/16, fe80::/10)`,
			`spec.externalIPs[6]: Invalid value: "010.0.0.1": must not have leading 0s`}},
		{"several faults at once", spec(`"type":"Node","ports":[{"name":"a","port":0,"targetPort":80},{"name":"a","port":70000,"targetPort":80}],"sessionAffinity":"x"`), []string{
			`spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive`,
			`spec.ports[1].name: Duplicate value: "a"`,
			`spec.ports[1].port: Invalid value: 70000: must be between 1 and 65535, inclusive`,
			`spec.sessionAffinity: Unsupported value: "x": supported values: "ClientIP", "None"`,
			`spec.type: Unsupported value: "Node": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort"`}},
	})
}

func TestServiceTraffic(t *testing.T) {
	timeout := func(seconds string) string {
		return spec(`"sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":` + seconds + `}}`)
	}
	const wrong = `spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: `
	creates(t, baseService, Service, []row{
		{"affinity", spec(`"sessionAffinity":"ClientIP"`), nil},
		{"affinity for a second", timeout("1"), nil},
		{"affinity for a day", timeout("86400"), nil},
		{"affinity for no time", timeout("0"), []string{wrong + `0: must be greater than 0 and less than 86400`}},
		{"affinity for less", timeout("-1"), []string{wrong + `-1: must be greater than 0 and less than 86400`}},
		{"affinity for longer", timeout("86401"), []string{wrong + `86401: must be greater than 0 and less than 86400`}},
		{"affinity unknown", spec(`"sessionAffinity":"Cookie"`), []string{`spec.sessionAffinity: Unsupported value: "Cookie": supported values: "ClientIP", "None"`}},
		{"internal local", spec(`"internalTrafficPolicy":"Local"`), nil},
		{"internal unknown", spec(`"internalTrafficPolicy":"x"`), []string{`spec.internalTrafficPolicy: Unsupported value: "x": supported values: "Cluster", "Local"`}},
		{"distribution to close ones", spec(`"trafficDistribution":"PreferClose"`), nil},
		{"distribution to the zone", spec(`"trafficDistribution":"PreferSameZone"`), nil},
		{"distribution to the node", spec(`"trafficDistribution":"PreferSameNode"`), nil},
		{"distribution unknown", spec(`"trafficDistribution":"x"`), []string{`spec.trafficDistribution: Unsupported value: "x": supported values: "PreferClose", "PreferSameZone", "PreferSameNode"`}},
	})
}

// TestServiceBeforeDefaults: what defaulting fills in is required where
// somebody has taken it out.
func TestServiceBeforeDefaults(t *testing.T) {
	s := object[corev1.Service](t, baseService, spec(local+`,"sessionAffinity":"ClientIP"`))
	s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = "", 0
	s.Spec.InternalTrafficPolicy, s.Spec.AllocateLoadBalancerNodePorts, s.Spec.SessionAffinityConfig = nil, nil, nil
	check(t, Service(s), []string{
		`spec.sessionAffinityConfig: Required value: when session affinity type is ClientIP`,
		`allocateLoadBalancerNodePorts: Required value`,
		`spec.externalTrafficPolicy: Required value`,
		`spec.internalTrafficPolicy: Required value`})
	s = object[corev1.Service](t, baseService)
	s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{}
	check(t, Service(s), []string{`spec.sessionAffinityConfig: Forbidden: must not be set when session affinity is None`})
	s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	check(t, Service(s), []string{`spec.sessionAffinityConfig.clientIP: Required value: when session affinity type is ClientIP`})
	s.Spec.SessionAffinityConfig.ClientIP = &corev1.ClientIPConfig{}
	check(t, Service(s), []string{`spec.sessionAffinityConfig.clientIP.timeoutSeconds: Required value: when session affinity type is ClientIP`})
}

func TestServiceTypeUpdate(t *testing.T) {
	updates(t, baseService, ServiceUpdate, []change{
		{"to node port", `{}`, spec(onNodes), nil},
		{"to load balancer", `{}`, spec(behind), nil},
		{"to local", spec(behind), spec(local), nil},
		{"to none", spec(onNodes), spec(`"clusterIP":"None","clusterIPs":["None"]`), []string{
			`spec.clusterIPs[0]: Invalid value: ["None"]: may not change once set`,
			`spec.clusterIPs[0]: Invalid value: "None": may not be set to 'None' for NodePort services`}},
		{"from none", spec(`"clusterIP":"None","clusterIPs":["None"]`), spec(onNodes), []string{
			`spec.clusterIPs[0]: Invalid value: "None": may not be set to 'None' for NodePort services`}},
		{"back with a node port", spec(onNodes), spec(`"type":"ClusterIP","externalTrafficPolicy":null`), []string{
			"spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"}},
		{"class", spec(behind + `,"loadBalancerClass":"a"`), spec(`"loadBalancerClass":"b"`), []string{`spec.loadBalancerClass: Invalid value: "b": may not change once set`}},
		{"class set later", spec(behind), spec(`"loadBalancerClass":"b"`), []string{`spec.loadBalancerClass: Invalid value: "b": may not change once set`}},
		{"class taken away", spec(behind + `,"loadBalancerClass":"a"`), spec(`"loadBalancerClass":null`), []string{`spec.loadBalancerClass: Invalid value: null: may not change once set`}},
		{"class with the type", `{}`, spec(behind + `,"loadBalancerClass":"b"`), nil},
		{"health check port", spec(local), spec(`"healthCheckNodePort":30082`), []string{`spec.healthCheckNodePort: Forbidden: field is immutable`}},
		{"health check port with the policy", spec(local), spec(`"externalTrafficPolicy":"Cluster","healthCheckNodePort":null`), nil},
		{"sources that were valid once", spec(behind + `,"loadBalancerSourceRanges":["192.0.2.1/24"]`), spec(`"loadBalancerSourceRanges":["192.0.2.1/24","192.0.2.2/24"]`), []string{
			`spec.LoadBalancerSourceRanges[1]: Invalid value: "192.0.2.2/24": must not have bits set beyond the prefix length`}},
		{"address that was valid once", spec(`"externalIPs":["010.0.0.1"]`), spec(`"publishNotReadyAddresses":true`), nil},
		{"another that would have been", spec(`"externalIPs":["010.0.0.1"]`), spec(`"externalIPs":["010.0.0.2"]`), []string{
			`spec.externalIPs[0]: Invalid value: "010.0.0.2": must not have leading 0s`}},
	})
}

func TestServiceStatusUpdate(t *testing.T) {
	ingress := func(list string) string { return `{"status":{"loadBalancer":{"ingress":[` + list + `]}}}` }
	const at = "status.loadBalancer.ingress"
	updates(t, baseService, ServiceStatusUpdate, []change{
		{"nothing", `{}`, `{}`, nil},
		{"of another type", `{}`, ingress(`{"ip":"192.0.2.1"}`), []string{at + ": Forbidden: may only be used when `spec.type` is 'LoadBalancer'"}},
		{"address", spec(behind), ingress(`{"ip":"192.0.2.1"}`), nil},
		{"addresses and a name", spec(behind), ingress(`{"ip":"192.0.2.1","ipMode":"Proxy"},{"ip":"2001:db8::1","ipMode":"VIP"},{"hostname":"lb.example.com","ports":[{"port":80,"protocol":"TCP"}]}`), nil},
		{"taken away", spec(behind) + ``, ingress(``), nil},
		{"no address", spec(behind), ingress(`{"ip":"x"}`), []string{at + `[0].ip: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)`}},
		{"leading zeros", spec(behind), ingress(`{"ip":"010.0.0.1"}`), []string{at + `[0].ip: Invalid value: "010.0.0.1": must not have leading 0s`}},
		{"mode of a name", spec(behind), ingress(`{"hostname":"lb","ipMode":"VIP"}`), []string{at + "[0].ipMode: Forbidden: may not be specified when `ip` is not set"}},
		{"unknown mode", spec(behind), ingress(`{"ip":"192.0.2.1","ipMode":"x"}`), []string{at + `[0].ipMode: Unsupported value: "x": supported values: "Proxy", "VIP"`}},
		{"bad name", spec(behind), ingress(`{"hostname":"a_b"}`), []string{at + `[0].hostname: Invalid value: "a_b": ` + subdomainRule}},
		{"address as name", spec(behind), ingress(`{"hostname":"192.0.2.1"}`), []string{at + `[0].hostname: Invalid value: "192.0.2.1": must be a DNS name, not an IP address`}},
		{"condition", `{}`, `{"status":{"conditions":[{"type":"a","status":"True","reason":"B","lastTransitionTime":"2025-01-01T00:00:00Z"}]}}`, nil},
		{"bad condition", `{}`, `{"status":{"conditions":[{"type":"a","status":"Perhaps","reason":"B","lastTransitionTime":"2025-01-01T00:00:00Z"}]}}`, []string{`status.conditions[0].status: Unsupported value: "Perhaps": supported values: "False", "True", "Unknown"`}},
	})
	old := object[corev1.Service](t, baseService, spec(behind), `{"metadata":{"resourceVersion":"1"}}`)
	s := old.DeepCopy()
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}
	check(t, ServiceStatusUpdate(s, old), []string{at + "[0].ipMode: Required value: must be specified when `ip` is set"})
}

func TestServiceWarnings(t *testing.T) {
	rows := []struct {
		name, patch string
		want        []string
	}{
		{"nothing", `{}`, nil},
		{"headless", spec(`"clusterIP":"None","clusterIPs":["None"],"loadBalancerIP":"192.0.2.1","externalIPs":["192.0.2.1"],"sessionAffinity":"ClientIP"`), []string{
			"spec.loadBalancerIP is ignored for headless services", "spec.externalIPs is ignored for headless services", "spec.SessionAffinity is ignored for headless services"}},
		{"external addresses", spec(`"externalIPs":["2001:DB8::1"]`), []string{
			`spec.externalIPs[0]: IPv6 address "2001:DB8::1" should be in RFC 5952 canonical format ("2001:db8::1")`,
			"spec.externalIPs is deprecated and may no longer be implemented in some clusters"}},
		{"external name", spec(`"type":"ExternalName","externalName":"a","externalIPs":["192.0.2.1"],` + noAddresses), []string{`spec.externalIPs is ignored when spec.type is "ExternalName"`}},
		{"name of another type", spec(`"externalName":"a"`), []string{`spec.externalName is ignored when spec.type is not "ExternalName"`}},
		{"padded sources", spec(behind + `,"loadBalancerSourceRanges":[" 2001:DB8::/32"],"loadBalancerIP":"anything"`), []string{
			`spec.loadBalancerSourceRanges[0]: IPv6 CIDR value "2001:DB8::/32" should be in RFC 5952 canonical format ("2001:db8::/32")`}},
		{"close", spec(`"trafficDistribution":"PreferClose"`), []string{`spec.trafficDistribution: "PreferClose" is deprecated; use "PreferSameZone"`}},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			if got := ServiceWarnings(object[corev1.Service](t, baseService, r.patch)); !slices.Equal(got, r.want) {
				t.Errorf("got:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(r.want, "\n  "))
			}
		})
	}
}
