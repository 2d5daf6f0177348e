// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package validation

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

const basePod = `{"metadata":{"name":"orders-1","namespace":"shop"},"spec":{"containers":[{"name":"c","image":"host","command":["orders"]}]}}`

// ctr is a patch that adds fields to the only container.
func ctr(fields string) string {
	return `{"spec":{"containers":[{"name":"c","image":"host",` + fields + `}]}}`
}

// initCtr is a patch that adds an init container with more fields.
func initCtr(fields string) string {
	return `{"spec":{"initContainers":[{"name":"i","image":"host"` + fields + `}]}}`
}

const (
	noVolumes   = "Forbidden: not supported yet by Fairlead: process pods have no volumes, they see the host's file system"
	onlyUser    = "Forbidden: not supported yet by Fairlead: of it, only runAsUser, runAsGroup and runAsNonRoot are; leave out the rest"
	onlyUserPod = "Forbidden: not supported yet by Fairlead: of it, only runAsUser, runAsGroup, runAsNonRoot, supplementalGroups and fsGroup are; leave out the rest"
	noAccounts  = "Forbidden: not supported yet by Fairlead: there are no service accounts; leave it out"
	allAlike    = "Forbidden: not supported yet by Fairlead: all pods are alike"
	spreads     = "Forbidden: not supported yet by Fairlead: pods are spread over the nodes; use nodeSelector or nodeName"
	requires    = "Forbidden: not supported yet by Fairlead: pods are spread over the nodes; use requiredDuringSchedulingIgnoredDuringExecution of nodeAffinity, nodeSelector or nodeName"
	terms       = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"
	cannotTouch = "Forbidden: not supported yet by Fairlead: nothing can be attached to a container; use fairlead exec"
	noDevices   = "Forbidden: not supported yet by Fairlead: there are no devices to claim"
	portRange   = "must be between 1 and 65535, inclusive"
)

func TestPod(t *testing.T) {
	creates(t, basePod, Pod, []row{
		{"valid", `{}`, nil},
		{"two containers", `{"spec":{"containers":[{"name":"a","image":"host"},{"name":"b","image":"anything:1"}]}}`, nil},
		{"init container", initCtr(``), nil},
		{"sidecar with probes", initCtr(`,"restartPolicy":"Always","readinessProbe":{"tcpSocket":{"port":1}},"livenessProbe":{"exec":{"command":["true"]}},"startupProbe":{"httpGet":{"port":"web"}}`), nil},
		{"never restarted", `{"spec":{"restartPolicy":"Never","terminationGracePeriodSeconds":0}}`, nil},
		{"named", `{"spec":{"hostname":"a","subdomain":"b"}}`, nil},
		{"placed", `{"spec":{"nodeName":"n1","nodeSelector":{"a":"b"},"tolerations":[{"key":"a","operator":"Exists","effect":"NoExecute","tolerationSeconds":3},{"operator":"Exists"},{"key":"b","value":"c","effect":"NoSchedule"}]}}`, nil},
		{"placed by labels", `{"spec":{"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"a","operator":"In","values":["b"]},{"key":"a","operator":"Exists"},{"key":"a","operator":"Gt","values":["1"]}],"matchFields":[{"key":"metadata.name","operator":"In","values":["n1"]}]}]}}}}}`, nil},
		{"users", `{"spec":{"securityContext":{"runAsUser":1000,"runAsNonRoot":true,"supplementalGroups":[5],"fsGroup":6},"containers":[{"name":"c","image":"host","securityContext":{"runAsUser":1,"runAsGroup":2,"runAsNonRoot":true}}]}}`, nil},
		{"hooks", ctr(`"lifecycle":{"postStart":{"exec":{"command":["a"]}},"preStop":{"sleep":{"seconds":30}}}`), nil},
		{"hooks of a sidecar", initCtr(`,"restartPolicy":"Always","lifecycle":{"preStop":{"httpGet":{"port":1}}}`), nil},
		{"secrets that need not exist", ctr(`"env":[{"name":"A","valueFrom":{"secretKeyRef":{"name":"a","key":"b","optional":true}}}],"envFrom":[{"secretRef":{"name":"a","optional":true}}]`), nil},
		{"resources are kept", ctr(`"resources":{"requests":{"cpu":"100m"},"limits":{"cpu":"1","memory":"1Gi","example.com/x":"1"}}`), nil},
		{"pull secrets are kept", `{"spec":{"imagePullSecrets":[{"name":"a"}]}}`, nil},
		{"default account", `{"spec":{"serviceAccountName":"default","serviceAccount":"default","automountServiceAccountToken":false}}`, nil},
		{"what is so anyway", `{"spec":{"securityContext":{},"affinity":{},"hostUsers":true,"os":{"name":"linux"},"priority":0,"shareProcessNamespace":true}}`, nil},
		{"not privileged", ctr(`"securityContext":{"privileged":false}`), nil},
		{"environment", ctr(`"env":[{"name":"A","value":"b"},{"name":"a.b-c"},{"name":"N","valueFrom":{"fieldRef":{"fieldPath":"metadata.name"}}},{"name":"L","valueFrom":{"fieldRef":{"fieldPath":"metadata.labels['a.example/b']"}}},{"name":"M","valueFrom":{"fieldRef":{"fieldPath":"metadata.annotations['A.example/b']"}}},{"name":"K","valueFrom":{"configMapKeyRef":{"name":"m","key":"k"}}}],"envFrom":[{"configMapRef":{"name":"m"}},{"prefix":"P_","configMapRef":{"name":"m"}}]`), nil},
		{"http probe", ctr(`"readinessProbe":{"httpGet":{"port":8080,"path":"/healthz","scheme":"HTTPS","httpHeaders":[{"name":"X-A","value":"b"}],"protocol":"HTTP1"},"successThreshold":3}`), nil},
		{"probe with grace", ctr(`"livenessProbe":{"tcpSocket":{"port":"web"},"terminationGracePeriodSeconds":5}`), nil},
		{"ports", ctr(`"ports":[{"containerPort":80,"name":"web"},{"containerPort":53,"protocol":"UDP"}]`), nil},
		{"resolver", `{"spec":{"dnsPolicy":"None","dnsConfig":{"nameservers":["10.96.0.10","fd00::a"],"searches":["a.b","_c.d.","."],"options":[{"name":"ndots","value":"2"}]}}}`, nil},
		{"aliases and gates", `{"spec":{"hostAliases":[{"ip":"10.0.0.1","hostnames":["a","b.c"]}],"readinessGates":[{"conditionType":"a.example/b"}]}}`, nil},

		{"bad name", `{"metadata":{"name":"A"}}`, []string{`metadata.name: Invalid value: "A": ` + subdomainRule}},
		{"no containers", `{"spec":{"containers":null}}`, []string{`spec.containers: Required value`}},
		{"no image", `{"spec":{"containers":[{"name":"c"}]}}`, []string{`spec.containers[0].image: Required value`}},
		{"blank image", `{"spec":{"containers":[{"name":"c","image":" host"}]}}`, []string{`spec.containers[0].image: Invalid value: " host": must not have leading or trailing whitespace`}},
		{"no container name", `{"spec":{"containers":[{"image":"host"}]}}`, []string{`spec.containers[0].name: Required value`}},
		{"bad container name", `{"spec":{"containers":[{"name":"C","image":"host"}]}}`, []string{`spec.containers[0].name: Invalid value: "C": ` + labelRule}},
		{"container twice", `{"spec":{"containers":[{"name":"c","image":"host"},{"name":"c","image":"host"}]}}`, []string{`spec.containers[1].name: Duplicate value: "c"`}},
		{"init container has the name of another", `{"spec":{"initContainers":[{"name":"c","image":"host"},{"name":"i","image":"host"},{"name":"i","image":"host"}]}}`, []string{`spec.initContainers[0].name: Duplicate value: "c"`, `spec.initContainers[2].name: Duplicate value: "i"`}},
		{"policy of a main container", ctr(`"restartPolicy":"Always"`), []string{`spec.containers[0].restartPolicy: Forbidden: may not be set for non-init containers`}},
		{"policy of an init container", initCtr(`,"restartPolicy":"Never"`), []string{`spec.initContainers[0].restartPolicy: Unsupported value: "Never": supported values: "Always"`}},
		{"probes of an init container", initCtr(`,"readinessProbe":{"tcpSocket":{"port":1}},"livenessProbe":{"tcpSocket":{"port":1}},"startupProbe":{"tcpSocket":{"port":1}}`), []string{
			`spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always`,
			`spec.initContainers[0].readinessProbe: Forbidden: may not be set for init containers without restartPolicy=Always`,
			`spec.initContainers[0].startupProbe: Forbidden: may not be set for init containers without restartPolicy=Always`}},
		{"unknown policies", `{"spec":{"restartPolicy":"Sometimes","dnsPolicy":"x"}}`, []string{
			`spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "Never", "OnFailure"`,
			`spec.dnsPolicy: Unsupported value: "x": supported values: "ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"`}},
		{"unknown policies of a container", ctr(`"imagePullPolicy":"x","terminationMessagePolicy":"y"`), []string{
			`spec.containers[0].terminationMessagePolicy: Unsupported value: "y": supported values: "FallbackToLogsOnError", "File"`,
			`spec.containers[0].imagePullPolicy: Unsupported value: "x": supported values: "Always", "IfNotPresent", "Never"`}},
		{"negative grace", `{"spec":{"terminationGracePeriodSeconds":-1}}`, []string{`spec.terminationGracePeriodSeconds: Invalid value: -1: must be greater than or equal to 0`}},
		{"no scheduler", `{"spec":{"schedulerName":""}}`, nil}, // defaulted

		{"ports out of range", ctr(`"ports":[{"containerPort":0},{"containerPort":70000},{"containerPort":80,"protocol":"x"}]`), []string{
			`spec.containers[0].ports[0].containerPort: Required value`,
			`spec.containers[0].ports[1].containerPort: Invalid value: 70000: ` + portRange,
			`spec.containers[0].ports[2].protocol: Unsupported value: "x": supported values: "SCTP", "TCP", "UDP"`}},
		{"port names", ctr(`"ports":[{"containerPort":1,"name":"a"},{"containerPort":2,"name":"a"},{"containerPort":3,"name":"way-too-long-name"},{"containerPort":4,"name":"A"}]`), []string{
			`spec.containers[0].ports[1].name: Duplicate value: "a"`,
			`spec.containers[0].ports[2].name: Invalid value: "way-too-long-name": must be no more than 15 characters`,
			`spec.containers[0].ports[3].name: Invalid value: "A": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)`,
			`spec.containers[0].ports[3].name: Invalid value: "A": must contain at least one letter (a-z)`}},

		{"probe without handler", ctr(`"readinessProbe":{}`), []string{`spec.containers[0].readinessProbe: Required value: must specify a handler type`}},
		{"probe with two", ctr(`"readinessProbe":{"exec":{"command":["a"]},"tcpSocket":{"port":1}}`), []string{`spec.containers[0].readinessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type`}},
		{"probe with no command", ctr(`"readinessProbe":{"exec":{}}`), []string{`spec.containers[0].readinessProbe.exec.command: Required value`}},
		{"probe of a bad port", ctr(`"livenessProbe":{"httpGet":{"port":0}},"readinessProbe":{"tcpSocket":{"port":"-"}}`), []string{
			`spec.containers[0].livenessProbe.httpGet.port: Invalid value: 0: ` + portRange,
			`spec.containers[0].readinessProbe.tcpSocket.port: Invalid value: "-": must contain at least one letter (a-z)`,
			`spec.containers[0].readinessProbe.tcpSocket.port: Invalid value: "-": must not begin or end with a hyphen`}},
		{"host ports", ctr(`"ports":[{"containerPort":80,"hostPort":8080},{"containerPort":80,"hostPort":8080,"protocol":"UDP"},{"containerPort":80,"hostPort":8080,"hostIP":"10.0.0.1"},{"containerPort":81,"hostPort":8081,"hostIP":"::"}]`), nil},
		{"bad host ports", ctr(`"ports":[{"containerPort":80,"hostPort":70000},{"containerPort":80,"hostPort":-1},{"containerPort":80,"hostPort":80,"hostIP":"here"},{"containerPort":80,"hostPort":81,"hostIP":"::ffff:1.2.3.4"}]`), []string{
			`spec.containers[0].ports[0].hostPort: Invalid value: 70000: must be between 1 and 65535, inclusive`,
			`spec.containers[0].ports[1].hostPort: Invalid value: -1: must be between 1 and 65535, inclusive`,
			`spec.containers[0].ports[2].hostIP: Invalid value: "here": must be a valid IP address…`,
			`spec.containers[0].ports[3].hostIP: Invalid value: "::ffff:1.2.3.4": must not be an IPv4-mapped IPv6 address`}},
		{"one host port twice", ctr(`"ports":[{"containerPort":80,"hostPort":8080},{"containerPort":81,"hostPort":8080}]`), []string{
			`spec.containers[0].ports[1].hostPort: Duplicate value: "TCP//8080"`}},
		{"probe scheme and header", ctr(`"livenessProbe":{"httpGet":{"port":1,"scheme":"ftp","httpHeaders":[{"name":"a b"}]}}`), []string{
			`spec.containers[0].livenessProbe.httpGet.scheme: Unsupported value: "ftp": supported values: "HTTP", "HTTPS"`,
			`spec.containers[0].livenessProbe.httpGet.httpHeaders[0].name: Invalid value: "a b": a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')`}},
		{"probe numbers", ctr(`"livenessProbe":{"tcpSocket":{"port":1},"initialDelaySeconds":-1,"timeoutSeconds":-2,"periodSeconds":-3,"successThreshold":2,"failureThreshold":-4,"terminationGracePeriodSeconds":0}`), []string{
			`spec.containers[0].livenessProbe.initialDelaySeconds: Invalid value: -1: must be greater than or equal to 0`,
			`spec.containers[0].livenessProbe.timeoutSeconds: Invalid value: -2: must be greater than or equal to 0`,
			`spec.containers[0].livenessProbe.periodSeconds: Invalid value: -3: must be greater than or equal to 0`,
			`spec.containers[0].livenessProbe.failureThreshold: Invalid value: -4: must be greater than or equal to 0`,
			`spec.containers[0].livenessProbe.terminationGracePeriodSeconds: Invalid value: 0: must be greater than 0`,
			`spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1`}},
		{"grace of a readiness probe", ctr(`"readinessProbe":{"tcpSocket":{"port":1},"terminationGracePeriodSeconds":1}`), []string{`spec.containers[0].readinessProbe.terminationGracePeriodSeconds: Invalid value: 1: must not be set for readinessProbes`}},

		{"variable without name", ctr(`"env":[{"value":"a"}]`), []string{`spec.containers[0].env[0].name: Required value`}},
		{"variable name", ctr(`"env":[{"name":"a=b"}]`), []string{`spec.containers[0].env[0].name: Invalid value: "a=b": a valid environment variable name must consist only of printable ASCII characters other than '='`}},
		{"variable with value and source", ctr(`"env":[{"name":"A","value":"b","valueFrom":{"fieldRef":{"fieldPath":"metadata.name"}}}]`), []string{"spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty"}},
		{"variable from nowhere", ctr(`"env":[{"name":"A","valueFrom":{}}]`), []string{"spec.containers[0].env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"}},
		{"variable from two", ctr(`"env":[{"name":"A","valueFrom":{"fieldRef":{"fieldPath":"metadata.name"},"configMapKeyRef":{"name":"a","key":"b"}}}]`), []string{"spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not have more than one field specified at a time"}},
		{"variable from an unknown field", ctr(`"env":[{"name":"A","valueFrom":{"fieldRef":{"fieldPath":"spec.x"}}}]`), []string{`spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value: "spec.x": supported values: "metadata.annotations['<KEY>']", "metadata.labels['<KEY>']", "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"`}},
		{"variable from all labels", ctr(`"env":[{"name":"A","valueFrom":{"fieldRef":{"fieldPath":"metadata.labels"}}}]`), []string{`spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value: "metadata.labels"…`}},
		{"variable from a half label", ctr(`"env":[{"name":"A","valueFrom":{"fieldRef":{"fieldPath":"metadata.labels['a"}}}]`), []string{`spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value: "metadata.labels['a"…`}},
		{"variable from a bad label", ctr(`"env":[{"name":"A","valueFrom":{"fieldRef":{"fieldPath":"metadata.labels['a b']"}}}]`), []string{`spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: "metadata.labels['a b']": name part must consist of…`}},
		{"variable from no field", ctr(`"env":[{"name":"A","valueFrom":{"fieldRef":{"apiVersion":"v2"}}}]`), []string{`spec.containers[0].env[0].valueFrom.fieldRef.apiVersion: Invalid value: "v2": must be "v1"`, `spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Required value`}},
		{"variable from no map", ctr(`"env":[{"name":"A","valueFrom":{"configMapKeyRef":{}}}],"envFrom":[{"configMapRef":{}},{}]`), []string{
			`spec.containers[0].env[0].valueFrom.configMapKeyRef.name: Required value`,
			`spec.containers[0].env[0].valueFrom.configMapKeyRef.key: Required value`,
			`spec.containers[0].envFrom[0].configMapRef.name: Required value`,
			"spec.containers[0].envFrom[1]: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`"}},
		{"variable from a bad key", ctr(`"env":[{"name":"A","valueFrom":{"configMapKeyRef":{"name":"M","key":".."}}}]`), []string{
			`spec.containers[0].env[0].valueFrom.configMapKeyRef.name: Invalid value: "M": ` + subdomainRule,
			`spec.containers[0].env[0].valueFrom.configMapKeyRef.key: Invalid value: "..": must not be '..'`}},
		{"resources", ctr(`"resources":{"requests":{"cpu":"2","memory":"-1"},"limits":{"cpu":"1"}}`), []string{
			`spec.containers[0].resources.requests[memory]: Invalid value: "-1": must be greater than or equal to 0`,
			`spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1`}},

		{"resolver missing", `{"spec":{"dnsPolicy":"None"}}`, []string{"spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"}},
		{"resolver without server", `{"spec":{"dnsPolicy":"None","dnsConfig":{}}}`, []string{"spec.dnsConfig.nameservers: Required value: must provide at least one DNS nameserver when `dnsPolicy` is None"}},
		{"resolver of too much", `{"spec":{"dnsConfig":{"nameservers":["1.1.1.1","1.1.1.2","1.1.1.3","x"],"searches":["-"],"options":[{}]}}}`, []string{
			`spec.dnsConfig.nameservers: Invalid value: ["1.1.1.1","1.1.1.2","1.1.1.3","x"]: must not have more than 3 nameservers`,
			`spec.dnsConfig.nameservers[3]: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)`,
			`spec.dnsConfig.searches[0]: Invalid value: "-": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.'…`,
			`spec.dnsConfig.options[0]: Required value: must not be empty`}},
		{"resolver searches too much", `{"spec":{"dnsConfig":{"searches":["` + strings.Repeat(`a","`, 32) + strings.Repeat(strings.Repeat("a", 60)+".", 4) + `"]}}}`, []string{
			`spec.dnsConfig.searches: Invalid value: ["a"…`}},
		{"resolver search list too long", `{"spec":{"dnsConfig":{"searches":["` + strings.Repeat(strings.Repeat("a.", 100)+`","`, 10) + strings.Repeat("a.", 100) + `"]}}}`, []string{
			`spec.dnsConfig.searches: Invalid value: ["a.a.…`}},
		{"names", `{"spec":{"hostname":"A","subdomain":"b.c","nodeName":"N","nodeSelector":{"a":"b c"}}}`, []string{
			`spec.nodeName: Invalid value: "N": ` + subdomainRule,
			`spec.nodeSelector: Invalid value: "b c": a valid label must be…`,
			`spec.hostname: Invalid value: "A": ` + labelRule,
			`spec.subdomain: Invalid value: "b.c": must not contain dots`}},
		{"nodes that cannot be", `{"spec":{"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[]}}}}}`, []string{terms + `: Required value: must have at least one node selector term`}},
		{"nodes that cannot be selected", `{"spec":{"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"a","operator":"In"},{"key":"a","operator":"Exists","values":["b"]},{"key":"a","operator":"Lt"},{"key":"a b","operator":"Like","values":["c d"]}],"matchFields":[{"key":"metadata.name","operator":"Exists"},{"key":"metadata.name","operator":"In"},{"key":"spec.x","operator":"In","values":["a"]},{"key":"metadata.name","operator":"In","values":["N"]}]}]}}}}}`, []string{
			terms + "[0].matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
			terms + "[0].matchExpressions[1].values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
			terms + "[0].matchExpressions[2].values: Required value: must be specified single value when `operator` is 'Lt' or 'Gt'",
			terms + `[0].matchExpressions[3].operator: Invalid value: "Like": not a valid selector operator`,
			terms + `[0].matchExpressions[3].key: Invalid value: "a b": name part must consist of…`,
			terms + `[0].matchExpressions[3].values[0]: Invalid value: "c d": a valid label must be…`,
			terms + `[0].matchFields[0].operator: Invalid value: "Exists": not a valid selector operator`,
			terms + "[0].matchFields[1].values: Required value: must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
			terms + `[0].matchFields[2].key: Invalid value: "spec.x": not a valid field selector key`,
			terms + `[0].matchFields[3].values[0]: Invalid value: "N": ` + subdomainRule}},
		{"aliases and gates that are none", `{"spec":{"hostAliases":[{"ip":"x","hostnames":["A"]}],"readinessGates":[{"conditionType":"a b"}],"imagePullSecrets":[{}]}}`, []string{
			`spec.hostAliases[0].ip: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)`,
			`spec.hostAliases[0].hostnames[0]: Invalid value: "A": ` + subdomainRule,
			`spec.readinessGates[0].conditionType: Invalid value: "a b": name part must consist of…`,
			`spec.imagePullSecrets[0].name: Required value`}},
		{"tolerations", `{"spec":{"tolerations":[{"key":"a b","operator":"Exists"},{"value":"a"},{"key":"a","operator":"Exists","value":"b"},{"key":"a","operator":"Like"},{"key":"a","effect":"x"},{"key":"a","tolerationSeconds":1}]}}`, []string{
			`spec.tolerations[0].key: Invalid value: "a b": name part must consist of…`,
			"spec.tolerations[1].operator: Invalid value: \"\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
			"spec.tolerations[2].operator: Invalid value: {\"key\":\"a\",\"operator\":\"Exists\",\"value\":\"b\"}: value must be empty when `operator` is 'Exists'",
			`spec.tolerations[3].operator: Unsupported value: "Like": supported values: "Equal", "Exists"`,
			`spec.tolerations[4].effect: Unsupported value: "x": supported values: "NoExecute", "NoSchedule", "PreferNoSchedule"`,
			"spec.tolerations[5].effect: Invalid value: \"\": effect must be 'NoExecute' when `tolerationSeconds` is set"}},
		{"ephemeral container", `{"spec":{"ephemeralContainers":[{"name":"e","image":"host"}]}}`, []string{`spec.ephemeralContainers: Forbidden: cannot be set on create`}},

		{"not yet: volumes", `{"spec":{"volumes":[{"name":"a","emptyDir":{}},{"name":"b","configMap":{"name":"x"}},{"name":"c","hostPath":{"path":"/"}}],"containers":[{"name":"c","image":"host","volumeMounts":[{"name":"a","mountPath":"/a"}],"volumeDevices":[{"name":"a","devicePath":"/a"}]}]}}`, []string{
			`spec.containers[0].volumeMounts[0]: ` + noVolumes, `spec.containers[0].volumeDevices[0]: ` + noVolumes,
			`spec.volumes[0]: ` + noVolumes, `spec.volumes[1]: ` + noVolumes, `spec.volumes[2]: ` + noVolumes}},
		{"not yet: the host's namespaces", `{"spec":{"hostNetwork":true,"hostPID":true,"hostIPC":true,"hostUsers":false}}`, []string{
			`spec.hostNetwork: Forbidden: not supported yet by Fairlead: every pod has its own network`,
			`spec.hostPID: Forbidden: not supported yet by Fairlead: every pod has its own processes`,
			`spec.hostIPC: Forbidden: not supported yet by Fairlead: every pod has its own IPC`,
			`spec.hostUsers: Forbidden: not supported yet by Fairlead: process pods run with the rights of the node`}},
		{"not yet: rights", `{"spec":{"securityContext":{"sysctls":[{"name":"a","value":"b"}]},"containers":[{"name":"c","image":"host","securityContext":{"privileged":true}},{"name":"d","image":"host","securityContext":{"runAsUser":1,"readOnlyRootFilesystem":true}}]}}`, []string{
			`spec.containers[0].securityContext: ` + onlyUser, `spec.containers[1].securityContext: ` + onlyUser, `spec.securityContext: ` + onlyUserPod}},
		{"users that are none", `{"spec":{"securityContext":{"runAsUser":-1,"runAsGroup":-2,"supplementalGroups":[-3],"fsGroup":-4},"containers":[{"name":"c","image":"host","securityContext":{"runAsUser":-1,"runAsGroup":4294967296}}]}}`, []string{
			`spec.containers[0].securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive`,
			`spec.containers[0].securityContext.runAsGroup: Invalid value: 4294967296: must be between 0 and 2147483647, inclusive`,
			`spec.securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive`,
			`spec.securityContext.runAsGroup: Invalid value: -2: must be between 0 and 2147483647, inclusive`,
			`spec.securityContext.supplementalGroups[0]: Invalid value: -3: must be between 0 and 2147483647, inclusive`,
			`spec.securityContext.fsGroup: Invalid value: -4: must be between 0 and 2147483647, inclusive`}},
		{"not yet: accounts", `{"spec":{"serviceAccountName":"a","serviceAccount":"a","automountServiceAccountToken":true}}`, []string{
			`spec.serviceAccountName: ` + noAccounts, `spec.serviceAccount: ` + noAccounts, `spec.automountServiceAccountToken: ` + noAccounts}},
		{"hooks that are none", ctr(`"lifecycle":{"postStart":{},"preStop":{"sleep":{"seconds":31}},"stopSignal":"SIGINT"}`), []string{
			`spec.containers[0].lifecycle.postStart: Required value: must specify a handler type`,
			`spec.containers[0].lifecycle.preStop.sleep.seconds: Invalid value: 31: must be non-negative and less than terminationGracePeriodSeconds (30)`,
			`spec.containers[0].lifecycle.stopSignal: Forbidden: not supported yet by Fairlead: containers are stopped with SIGTERM`}},
		{"hook of two", ctr(`"lifecycle":{"preStop":{"sleep":{"seconds":1},"tcpSocket":{"port":1}}}`), []string{`spec.containers[0].lifecycle.preStop.sleep: Forbidden: may not specify more than 1 handler type`}},
		{"hooks of an init container", initCtr(`,"lifecycle":{}`), []string{`spec.initContainers[0].lifecycle: Forbidden: may not be set for init containers without restartPolicy=Always`}},
		{"not yet: a name", `{"spec":{"containers":[{"name":"pause","image":"host"}]}}`, []string{`spec.containers[0].name: Unsupported value: "pause": not supported yet by Fairlead: the first process of every pod has that name`}},
		{"not yet: gRPC", ctr(`"readinessProbe":{"grpc":{"port":1}}`), []string{`spec.containers[0].readinessProbe.grpc: Forbidden: not supported yet by Fairlead: use httpGet, tcpSocket or exec`}},
		{"not yet: HTTP 2", ctr(`"readinessProbe":{"httpGet":{"port":1,"protocol":"HTTP2"}}`), []string{`spec.containers[0].readinessProbe.httpGet.protocol: Unsupported value: "HTTP2": not supported yet by Fairlead: use "HTTP1"`}},
		{"SCTP", ctr(`"ports":[{"containerPort":80,"protocol":"SCTP"}]`), nil},
		{"not yet: secrets and other sources", ctr(`"env":[{"name":"A","valueFrom":{"secretKeyRef":{"name":"a","key":"b"}}},{"name":"B","valueFrom":{"resourceFieldRef":{"resource":"limits.cpu"}}},{"name":"C","valueFrom":{"fileKeyRef":{"volumeName":"a","path":"b","key":"c"}}}],"envFrom":[{"secretRef":{"name":"a"}}]`), []string{
			`spec.containers[0].env[0].valueFrom.secretKeyRef: Forbidden: not supported yet by Fairlead: there are no Secrets; use configMapKeyRef`,
			`spec.containers[0].env[1].valueFrom.resourceFieldRef: Forbidden: not supported yet by Fairlead: process pods have no limits`,
			`spec.containers[0].env[2].valueFrom.fileKeyRef: Forbidden: not supported yet by Fairlead: process pods have no volumes; use configMapKeyRef`,
			`spec.containers[0].envFrom[0].secretRef: Forbidden: not supported yet by Fairlead: there are no Secrets; use configMapRef`}},
		{"two sources of all", ctr(`"envFrom":[{"prefix":"a=","configMapRef":{"name":"m"},"secretRef":{"name":"a"}}]`), []string{
			`spec.containers[0].envFrom[0].prefix: Invalid value: "a=": a valid environment variable name must consist only of printable ASCII characters other than '='`,
			`spec.containers[0].envFrom[0].secretRef: Forbidden: not supported yet by Fairlead: there are no Secrets; use configMapRef`,
			"spec.containers[0].envFrom[0]: Invalid value: \"\": may not have more than one field specified at a time"}},
		{"not yet: terminals", ctr(`"stdin":true,"stdinOnce":true,"tty":true`), []string{`spec.containers[0].stdin: ` + cannotTouch, `spec.containers[0].stdinOnce: ` + cannotTouch, `spec.containers[0].tty: ` + cannotTouch}},
		{"not yet: rules", ctr(`"restartPolicyRules":[{"action":"Restart"}]`), []string{`spec.containers[0].restartPolicyRules: Forbidden: not supported yet by Fairlead: use the pod's restartPolicy`}},
		{"not yet: placing", `{"spec":{"affinity":{"podAffinity":{},"podAntiAffinity":{},"nodeAffinity":{"preferredDuringSchedulingIgnoredDuringExecution":[{"weight":1}]}},"topologySpreadConstraints":[{"maxSkew":1}],"schedulingGates":[{"name":"a"}],"priorityClassName":"a","priority":1,"preemptionPolicy":"Never"}}`, []string{
			`spec.affinity.podAffinity: ` + requires, `spec.affinity.podAntiAffinity: ` + requires,
			`spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution: ` + requires,
			`spec.topologySpreadConstraints: ` + spreads,
			`spec.schedulingGates: Forbidden: not supported yet by Fairlead: create the pod when it may start`,
			`spec.priorityClassName: ` + allAlike, `spec.priority: ` + allAlike, `spec.preemptionPolicy: ` + allAlike}},
		{"not yet: the rest", `{"spec":{"activeDeadlineSeconds":5,"runtimeClassName":"a","overhead":{"cpu":"1"},"setHostnameAsFQDN":true,"hostnameOverride":"a","os":{"name":"windows"},"resourceClaims":[{"name":"a"}],"containers":[{"name":"c","image":"host","resources":{"claims":[{"name":"a"}]}}]}}`, []string{
			`spec.containers[0].resources.claims[0]: ` + noDevices,
			`spec.activeDeadlineSeconds: Forbidden: not supported yet by Fairlead: a pod runs until it ends or is deleted`,
			`spec.runtimeClassName: Forbidden: not supported yet by Fairlead: there is one way to run a process pod`,
			`spec.overhead: Forbidden: not supported yet by Fairlead: process pods have none`,
			`spec.setHostnameAsFQDN: Forbidden: not supported yet by Fairlead: use hostname and subdomain`,
			`spec.hostnameOverride: Forbidden: not supported yet by Fairlead: use hostname and subdomain`,
			`spec.os: Forbidden: not supported yet by Fairlead: process pods run on Linux`,
			`spec.resourceClaims: ` + noDevices}},
	})
}

func TestPodUpdate(t *testing.T) {
	const other = "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n…"
	const tolerates = `{"spec":{"tolerations":[{"key":"a","operator":"Exists","effect":"NoExecute","tolerationSeconds":5}]}}`
	updates(t, basePod, PodUpdate, []change{
		{"nothing", `{}`, `{}`, nil},
		{"labels", `{}`, `{"metadata":{"labels":{"a":"b"}}}`, nil},
		{"image", `{}`, `{"spec":{"containers":[{"name":"c","image":"other:latest","command":["orders"]}]}}`, nil},
		{"image of an init container", initCtr(``), initCtr(`,"image":"b:latest"`), nil},
		{"toleration added", tolerates, `{"spec":{"tolerations":[{"key":"b","operator":"Exists"},{"key":"a","operator":"Exists","effect":"NoExecute","tolerationSeconds":9}]}}`, nil},
		{"status is not looked at", `{}`, `{"status":{"phase":"x"}}`, nil},

		{"command", `{}`, `{"spec":{"containers":[{"name":"c","image":"host","command":["other"]}]}}`, []string{other}},
		{"node", `{}`, `{"spec":{"nodeName":"n2"}}`, []string{other}},
		{"hostname", `{}`, `{"spec":{"hostname":"h"}}`, []string{other}},
		{"grace", `{}`, `{"spec":{"terminationGracePeriodSeconds":1}}`, []string{other}},
		{"grace that was negative", `{"spec":{"terminationGracePeriodSeconds":-1}}`, `{"spec":{"terminationGracePeriodSeconds":1}}`, nil},
		{"image taken away", `{}`, `{"spec":{"containers":[{"name":"c","image":"","command":["orders"],"imagePullPolicy":"Always"}]}}`, []string{`spec.containers[0].image: Required value`}},
		{"image blank", `{}`, `{"spec":{"containers":[{"name":"c","image":"a ","command":["orders"],"imagePullPolicy":"Always"}]}}`, []string{`spec.containers[0].image: Invalid value: "a ": must not have leading or trailing whitespace`}},
		{"container added", `{}`, `{"spec":{"containers":[{"name":"c","image":"host"},{"name":"d","image":"host"}]}}`, []string{`spec.containers: Forbidden: pod updates may not add or remove containers`}},
		{"init container added", `{}`, initCtr(``), []string{`spec.initContainers: Forbidden: pod updates may not add or remove containers`}},
		{"toleration taken away", tolerates, `{"spec":{"tolerations":null}}`, []string{`spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds`}},
		{"toleration is bad", `{}`, `{"spec":{"tolerations":[{"key":"a","operator":"x"}]}}`, []string{`spec.tolerations[0].operator: Unsupported value: "x": supported values: "Equal", "Exists"`}},
		{"name", `{}`, `{"metadata":{"name":"b"}}`, []string{`metadata.name: Invalid value: "b": field is immutable`}},
	})
}

func TestPodStatusUpdate(t *testing.T) {
	const never = `{"spec":{"restartPolicy":"Never"},`
	const ended = `"status":{"containerStatuses":[{"name":"c","state":{"terminated":{"exitCode":0}}}]}}`
	const failed = `"status":{"containerStatuses":[{"name":"c","state":{"terminated":{"exitCode":1}}}]}}`
	const runs = `{"status":{"containerStatuses":[{"name":"c","state":{"terminated":null,"running":{}}}]}}`
	const sidecar = `{"spec":{"restartPolicy":"Never","initContainers":[{"name":"i","image":"host","restartPolicy":"Always"}]},"status":{"initContainerStatuses":[{"name":"i","state":{"terminated":{"exitCode":0}}}]}}`
	const initial = `{"spec":{"restartPolicy":"Never","initContainers":[{"name":"i","image":"host"}]},"status":{"initContainerStatuses":[{"name":"i","state":{"terminated":{"exitCode":0}}}]}}`
	const again = `{"status":{"initContainerStatuses":[{"name":"i","state":{"running":{}}}]}}`
	updates(t, basePod, PodStatusUpdate, []change{
		{"running", `{}`, `{"status":{"phase":"Running","podIP":"10.244.1.2","podIPs":[{"ip":"10.244.1.2"},{"ip":"fd00::2"}],"hostIP":"172.30.0.11","hostIPs":[{"ip":"172.30.0.11"}],"conditions":[{"type":"Ready","status":"True"},{"type":"a.example/b","status":"True"}]}}`, nil},
		{"restarted", `{` + ended, runs, nil},
		{"never restarted", never + ended, runs, []string{`status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state`}},
		{"restarted on failure", `{"spec":{"restartPolicy":"OnFailure"},` + failed, runs, nil},
		{"done is not restarted on failure", `{"spec":{"restartPolicy":"OnFailure"},` + ended, runs, []string{`status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state`}},
		{"sidecar restarted", sidecar, again, nil},
		{"init container again", initial, again, []string{`status.initContainerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state`}},
		{"node", `{}`, `{"spec":{"nodeName":"n2"}}`, []string{`status.nodeName: Forbidden: may not be changed directly`}},
		{"nominated node", `{}`, `{"status":{"nominatedNodeName":"N"}}`, []string{`status.nominatedNodeName: Invalid value: "N": ` + subdomainRule}},
		{"condition", `{}`, `{"status":{"conditions":[{"type":"a b","status":"True"}]}}`, []string{`status.conditions[0].type: Invalid value: "a b": name part must consist of…`}},
		{"addresses", `{}`, `{"status":{"podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.2"},{"ip":"10.0.0.3"}],"hostIP":"x","hostIPs":[{"ip":"x"}]}}`, []string{
			`status.podIPs: Invalid value: ["10.0.0.2","10.0.0.3"]: may specify no more than one IP for each IP family`,
			"status.podIPs[0]: Invalid value: \"10.0.0.2\": must be equal to `podIP`",
			`status.hostIPs[0]: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)`}},
	})
}

func TestBinding(t *testing.T) {
	creates(t, `{"target":{"kind":"Node","name":"n1"}}`, Binding, []row{
		{"valid", `{}`, nil},
		{"kind left out", `{"target":{"kind":""}}`, nil},
		{"of another kind", `{"target":{"kind":"Pod"}}`, []string{`target.kind: Unsupported value: "Pod": supported values: "Node", "<empty>"`}},
		{"to nothing", `{"target":{"name":""}}`, []string{`target.name: Required value`}},
	})
}

func TestPodFieldsAreDecided(t *testing.T) {
	decided[corev1.PodSpec](t,
		[]string{ // checked
			"InitContainers", "Containers", "EphemeralContainers", "RestartPolicy", "TerminationGracePeriodSeconds", "DNSPolicy",
			"NodeSelector", "NodeName", "Hostname", "Subdomain", "SchedulerName", "Tolerations", "HostAliases", "DNSConfig",
			"ReadinessGates", "Resources", "ImagePullSecrets", "SecurityContext", "Affinity"},
		[]string{ // only kept: process pods share their processes anyway, and have no links
			"ShareProcessNamespace", "EnableServiceLinks"},
		[]string{ // refused, or only what is so anyway
			"Volumes", "ActiveDeadlineSeconds", "ServiceAccountName", "DeprecatedServiceAccount", "AutomountServiceAccountToken",
			"HostNetwork", "HostPID", "HostIPC", "HostUsers", "PriorityClassName", "Priority",
			"RuntimeClassName", "PreemptionPolicy", "Overhead", "TopologySpreadConstraints", "SetHostnameAsFQDN", "OS",
			"SchedulingGates", "ResourceClaims", "HostnameOverride", "SchedulingGroup", "EvictionResponders"})
	decided[corev1.Container](t,
		[]string{ // checked
			"Name", "Image", "Ports", "EnvFrom", "Env", "Resources", "RestartPolicy", "LivenessProbe", "ReadinessProbe",
			"StartupProbe", "TerminationMessagePolicy", "ImagePullPolicy", "Lifecycle", "SecurityContext"},
		[]string{ // any value will do, or only kept
			"Command", "Args", "WorkingDir", "TerminationMessagePath", "ResizePolicy"},
		[]string{ // refused
			"VolumeMounts", "VolumeDevices", "Stdin", "StdinOnce", "TTY", "RestartPolicyRules"})
	decided[corev1.Probe](t, []string{"ProbeHandler", "InitialDelaySeconds", "TimeoutSeconds", "PeriodSeconds", "SuccessThreshold", "FailureThreshold", "TerminationGracePeriodSeconds"})
	decided[corev1.ProbeHandler](t, []string{"Exec", "HTTPGet", "TCPSocket"}, []string{"GRPC"})
	decided[corev1.Lifecycle](t, []string{"PostStart", "PreStop"}, []string{"StopSignal"})
	decided[corev1.LifecycleHandler](t, []string{"Exec", "HTTPGet", "TCPSocket", "Sleep"})
	decided[corev1.SecurityContext](t, []string{"RunAsUser", "RunAsGroup", "RunAsNonRoot"}, // followed
		[]string{"Capabilities", "Privileged", "SELinuxOptions", "WindowsOptions", "ReadOnlyRootFilesystem", "AllowPrivilegeEscalation",
			"ProcMount", "SeccompProfile", "AppArmorProfile"})
	decided[corev1.Affinity](t, []string{"NodeAffinity"}, []string{"PodAffinity", "PodAntiAffinity"})
	decided[corev1.EnvVarSource](t, []string{"FieldRef", "ConfigMapKeyRef"}, []string{"ResourceFieldRef", "SecretKeyRef", "FileKeyRef"})
	decided[corev1.EnvFromSource](t, []string{"Prefix", "ConfigMapRef"}, []string{"SecretRef"})
	decided[corev1.ContainerPort](t, []string{"Name", "ContainerPort", "Protocol"}, []string{"HostPort", "HostIP"})
	decided[corev1.PodDNSConfig](t, []string{"Nameservers", "Searches", "Options"})
}
