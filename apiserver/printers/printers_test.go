// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package printers

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/cli-runtime/pkg/printers"
	"sigs.k8s.io/randfill"
)

// noon is when the tests are run; objects are made at most an hour before.
var noon = time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)

func TestMain(m *testing.M) {
	now = func() time.Time { return noon }
	m.Run()
}

// kinds are all that have a table of their own.
var kinds = map[string]struct {
	resource schema.GroupResource
	object   func() runtime.Object
	list     func() runtime.Object
}{
	"pod":           {corev1.Resource("pods"), func() runtime.Object { return &corev1.Pod{} }, func() runtime.Object { return &corev1.PodList{} }},
	"service":       {corev1.Resource("services"), func() runtime.Object { return &corev1.Service{} }, func() runtime.Object { return &corev1.ServiceList{} }},
	"node":          {corev1.Resource("nodes"), func() runtime.Object { return &corev1.Node{} }, func() runtime.Object { return &corev1.NodeList{} }},
	"namespace":     {corev1.Resource("namespaces"), func() runtime.Object { return &corev1.Namespace{} }, func() runtime.Object { return &corev1.NamespaceList{} }},
	"configmap":     {corev1.Resource("configmaps"), func() runtime.Object { return &corev1.ConfigMap{} }, func() runtime.Object { return &corev1.ConfigMapList{} }},
	"event":         {corev1.Resource("events"), func() runtime.Object { return &corev1.Event{} }, func() runtime.Object { return &corev1.EventList{} }},
	"endpointslice": {discoveryv1.Resource("endpointslices"), func() runtime.Object { return &discoveryv1.EndpointSlice{} }, func() runtime.Object { return &discoveryv1.EndpointSliceList{} }},
	"lease":         {coordinationv1.Resource("leases"), func() runtime.Object { return &coordinationv1.Lease{} }, func() runtime.Object { return &coordinationv1.LeaseList{} }},
	"servicecidr":   {networkingv1.Resource("servicecidrs"), func() runtime.Object { return &networkingv1.ServiceCIDR{} }, func() runtime.Object { return &networkingv1.ServiceCIDRList{} }},
	"ipaddress":     {networkingv1.Resource("ipaddresses"), func() runtime.Object { return &networkingv1.IPAddress{} }, func() runtime.Object { return &networkingv1.IPAddressList{} }},
	"deployment":    {appsv1.Resource("deployments"), func() runtime.Object { return &appsv1.Deployment{} }, func() runtime.Object { return &appsv1.DeploymentList{} }},
	"replicaset":    {appsv1.Resource("replicasets"), func() runtime.Object { return &appsv1.ReplicaSet{} }, func() runtime.Object { return &appsv1.ReplicaSetList{} }},
}

func TestAllKindsAreTested(t *testing.T) {
	if len(kinds) != len(tables) {
		t.Errorf("%d kinds are tested, %d have tables", len(kinds), len(tables))
	}
}

// decode makes an object of a kind, five minutes old and named x unless the
// document says something else.
func decode(t *testing.T, kind, doc string) runtime.Object {
	t.Helper()
	obj := kinds[kind].object()
	if err := json.Unmarshal([]byte(`{"metadata":{"name":"x","creationTimestamp":"2025-06-01T11:55:00Z"}}`), obj); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(doc), obj); err != nil {
		t.Fatalf("decode %s: %v", doc, err)
	}
	return obj
}

// cells are those of the only row, and of the wide part after a bar.
func cells(t *testing.T, kind string, obj runtime.Object) string {
	t.Helper()
	table, err := For(kinds[kind].resource).ConvertToTable(context.Background(), obj, nil)
	if err != nil {
		t.Fatal(err)
	}
	var narrow, wide []string
	for i, cell := range table.Rows[0].Cells {
		if table.ColumnDefinitions[i].Priority == 0 {
			narrow = append(narrow, fmt.Sprint(cell))
		} else {
			wide = append(wide, fmt.Sprint(cell))
		}
	}
	text := strings.Join(narrow, "  ")
	if len(wide) > 0 {
		text += " | " + strings.Join(wide, "  ")
	}
	return text
}

func TestColumns(t *testing.T) {
	want := map[string]string{
		"pod":           "NAME READY STATUS RESTARTS AGE | IP NODE NOMINATED_NODE READINESS_GATES",
		"service":       "NAME TYPE CLUSTER-IP EXTERNAL-IP PORT(S) AGE | SELECTOR",
		"node":          "NAME STATUS ROLES AGE VERSION | INTERNAL-IP EXTERNAL-IP OS-IMAGE KERNEL-VERSION CONTAINER-RUNTIME",
		"namespace":     "NAME STATUS AGE",
		"configmap":     "NAME DATA AGE",
		"event":         "LAST_SEEN TYPE REASON OBJECT MESSAGE | SUBOBJECT SOURCE FIRST_SEEN COUNT NAME",
		"endpointslice": "NAME ADDRESSTYPE PORTS ENDPOINTS AGE",
		"lease":         "NAME HOLDER AGE",
		"servicecidr":   "NAME CIDRS AGE",
		"ipaddress":     "NAME PARENTREF AGE",
		"deployment":    "NAME READY UP-TO-DATE AVAILABLE AGE | CONTAINERS IMAGES SELECTOR",
		"replicaset":    "NAME DESIRED CURRENT READY AGE | CONTAINERS IMAGES SELECTOR",
	}
	for kind, k := range kinds {
		var narrow, wide []string
		for _, c := range tables[k.resource].columns {
			name := strings.ReplaceAll(strings.ToUpper(c.Name), " ", "_")
			if c.Priority == 0 {
				narrow = append(narrow, name)
			} else {
				wide = append(wide, name)
			}
			if c.Description == "" {
				t.Errorf("%s: column %s has no description", kind, c.Name)
			}
			if c.Type != "string" && c.Type != "integer" {
				t.Errorf("%s: column %s is of type %s", kind, c.Name, c.Type)
			}
		}
		got := strings.Join(narrow, " ")
		if len(wide) > 0 {
			got += " | " + strings.Join(wide, " ")
		}
		if got != want[kind] {
			t.Errorf("%s: got %s, want %s", kind, got, want[kind])
		}
	}
}

func TestCells(t *testing.T) {
	rows := []struct{ kind, name, doc, want string }{
		{"service", "cluster", `{"spec":{"type":"ClusterIP","clusterIP":"10.96.0.9","clusterIPs":["10.96.0.9","fd00::9"],"ports":[{"port":80,"protocol":"TCP"},{"port":53,"protocol":"UDP"}],"selector":{"b":"2","a":"1"}}}`, "x  ClusterIP  10.96.0.9  <none>  80/TCP,53/UDP  5m | a=1,b=2"},
		{"service", "headless", `{"spec":{"type":"ClusterIP","clusterIP":"None","clusterIPs":["None"]}}`, "x  ClusterIP  None  <none>  <none>  5m | <none>"},
		{"service", "no address", `{"spec":{"type":"ClusterIP"}}`, "x  ClusterIP  <none>  <none>  <none>  5m | <none>"},
		{"service", "external addresses", `{"spec":{"type":"ClusterIP","externalIPs":["192.0.2.1","192.0.2.2"]}}`, "x  ClusterIP  <none>  192.0.2.1,192.0.2.2  <none>  5m | <none>"},
		{"service", "external name", `{"spec":{"type":"ExternalName","externalName":"db.example"}}`, "x  ExternalName  <none>  db.example  <none>  5m | <none>"},
		{"service", "node port", `{"spec":{"type":"NodePort","clusterIP":"10.96.0.9","ports":[{"port":80,"nodePort":30080,"protocol":"TCP"}]}}`, "x  NodePort  10.96.0.9  <none>  80:30080/TCP  5m | <none>"},
		{"service", "load balancer", `{"spec":{"type":"LoadBalancer","externalIPs":["192.0.2.9"]},"status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.1"},{"hostname":"lb.example"},{"ip":"192.0.2.1"}]}}}`, "x  LoadBalancer  <none>  192.0.2.1,lb.example,192.0.2.9  <none>  5m | <none>"},
		{"service", "load balancer pending", `{"spec":{"type":"LoadBalancer"}}`, "x  LoadBalancer  <none>  <pending>  <none>  5m | <none>"},
		{"service", "of no type", `{}`, "x    <none>  <unknown>  <none>  5m | <none>"},
		{"service", "never created", `{"metadata":{"creationTimestamp":null},"spec":{"type":"ClusterIP"}}`, "x  ClusterIP  <none>  <none>  <none>  <unknown> | <none>"},

		{"endpointslice", "one", `{"addressType":"IPv4","ports":[{"name":"http","port":8080}],"endpoints":[{"addresses":["10.244.1.2"]}]}`, "x  IPv4  8080  10.244.1.2  5m"},
		{"endpointslice", "three", `{"addressType":"IPv4","ports":[{"port":1},{"port":2},{"port":3}],"endpoints":[{"addresses":["10.244.1.2"]},{"addresses":["10.244.1.3","10.244.1.4"]}]}`, "x  IPv4  1,2,3  10.244.1.2,10.244.1.3,10.244.1.4  5m"},
		{"endpointslice", "more", `{"addressType":"IPv6","ports":[{"port":1},{"name":"b"},{},{"port":4}],"endpoints":[{"addresses":["fd00::1"]},{"addresses":["fd00::2"]},{"addresses":["fd00::3"]},{"addresses":["fd00::4"]},{"addresses":["fd00::5"]}]}`, "x  IPv6  1,b,* + 1 more...  fd00::1,fd00::2,fd00::3 + 2 more...  5m"},
		{"endpointslice", "none", `{"addressType":"IPv4"}`, "x  IPv4  <unset>  <unset>  5m"},

		{"node", "ready", `{"metadata":{"name":"n1","labels":{"node-role.kubernetes.io/worker":"","kubernetes.io/role":"edge","node-role.kubernetes.io/":""}},"status":{"conditions":[{"type":"NetworkUnavailable","status":"False"},{"type":"Ready","status":"True"}],"addresses":[{"type":"Hostname","address":"n1"},{"type":"InternalIP","address":"172.30.0.11"},{"type":"InternalIP","address":"fd00:30::b"}],"nodeInfo":{"kubeletVersion":"v1.37.2","osImage":"Debian 13","kernelVersion":"6.12","containerRuntimeVersion":"fairlead://1"}}}`, "n1  Ready  edge,worker  5m  v1.37.2 | 172.30.0.11  <none>  Debian 13  6.12  fairlead://1"},
		{"node", "not ready", `{"status":{"conditions":[{"type":"Ready","status":"Unknown"}]}}`, "x  NotReady  <none>  5m   | <none>  <none>  <unknown>  <unknown>  <unknown>"},
		{"node", "unknown", `{}`, "x  Unknown  <none>  5m   | <none>  <none>  <unknown>  <unknown>  <unknown>"},
		{"node", "cordoned", `{"spec":{"unschedulable":true},"status":{"conditions":[{"type":"Ready","status":"True"}]}}`, "x  Ready,SchedulingDisabled  <none>  5m   | <none>  <none>  <unknown>  <unknown>  <unknown>"},

		{"namespace", "active", `{"status":{"phase":"Active"}}`, "x  Active  5m"},
		{"configmap", "both", `{"data":{"a":"1","b":"2"},"binaryData":{"c":"AA=="}}`, "x  3  5m"},
		{"lease", "held", `{"spec":{"holderIdentity":"n1"}}`, "x  n1  5m"},
		{"lease", "free", `{}`, "x    5m"},
		{"servicecidr", "two", `{"metadata":{"name":"kubernetes"},"spec":{"cidrs":["10.96.0.0/16","fd00:96::/112"]}}`, "kubernetes  10.96.0.0/16,fd00:96::/112  5m"},
		{"ipaddress", "service", `{"metadata":{"name":"10.96.0.1"},"spec":{"parentRef":{"resource":"services","namespace":"default","name":"kubernetes"}}}`, "10.96.0.1  services/default/kubernetes  5m"},
		{"ipaddress", "of a group", `{"metadata":{"name":"10.96.0.1"},"spec":{"parentRef":{"group":"Example.com","resource":"gateways","name":"a"}}}`, "10.96.0.1  gateways.example.com/a  5m"},
		{"ipaddress", "nobody's", `{"metadata":{"name":"10.96.0.1"}}`, "10.96.0.1  <none>  5m"},

		{"deployment", "rolling", `{"spec":{"replicas":4,"selector":{"matchLabels":{"app":"a"}},"template":{"spec":{"containers":[{"name":"c","image":"host"},{"name":"d","image":"other"}]}}},"status":{"readyReplicas":3,"updatedReplicas":2,"availableReplicas":3}}`, "x  3/4  2  3  5m | c,d  host,other  app=a"},
		{"deployment", "new", `{}`, "x  0/1  0  0  5m |     <none>"},
		{"deployment", "expressions", `{"spec":{"replicas":0,"selector":{"matchExpressions":[{"key":"a","operator":"In","values":["b","c"]}]}}}`, "x  0/0  0  0  5m |     a in (b,c)"},
		{"replicaset", "scaling", `{"spec":{"replicas":4,"selector":{"matchLabels":{"app":"a"}},"template":{"spec":{"containers":[{"name":"c","image":"host"}]}}},"status":{"replicas":3,"readyReplicas":2}}`, "x  4  3  2  5m | c  host  app=a"},
		{"replicaset", "new", `{}`, "x  1  0  0  5m |     <none>"},

		{"event", "old form", `{"metadata":{"name":"x.1"},"involvedObject":{"kind":"Pod","name":"a","fieldPath":"spec.containers{c}"},"type":"Normal","reason":"Started","message":"Started container c\n","source":{"component":"runner","host":"n1"},"firstTimestamp":"2025-06-01T11:50:00Z","lastTimestamp":"2025-06-01T11:59:00Z","count":3}`, "60s  Normal  Started  pod/a  Started container c | spec.containers{c}  runner, n1  10m  3  x.1"},
		{"event", "new form", `{"metadata":{"name":"x.2"},"involvedObject":{"kind":"Node","name":"n1"},"type":"Warning","reason":"Lost","reportingComponent":"fairlead.example/control","reportingInstance":"i","eventTime":"2025-06-01T11:58:00.000000Z"}`, "2m  Warning  Lost  node/n1   |   fairlead.example/control, i  2m  1  x.2"},
		{"event", "series", `{"metadata":{"name":"x.3"},"involvedObject":{"kind":"Node","name":"n1"},"eventTime":"2025-06-01T11:58:00.000000Z","series":{"count":7,"lastObservedTime":"2025-06-01T11:59:30.000000Z"}}`, "30s      node/n1   |     2m  7  x.3"},
		{"event", "bare", `{"metadata":{"name":"x.4"}}`, "<unknown>         |     <unknown>  1  x.4"},
	}
	for _, row := range rows {
		t.Run(row.kind+"/"+row.name, func(t *testing.T) {
			if got := cells(t, row.kind, decode(t, row.kind, row.doc)); got != row.want {
				t.Errorf("got  %q\nwant %q", got, row.want)
			}
		})
	}
}

// TestPodStatus has the words that people know a pod's state by.
func TestPodStatus(t *testing.T) {
	const two = `"spec":{"containers":[{"name":"a"},{"name":"b"}]},`
	const init2 = `"spec":{"initContainers":[{"name":"i"},{"name":"j"}],"containers":[{"name":"a"}]},`
	const side = `"spec":{"initContainers":[{"name":"i"},{"name":"s","restartPolicy":"Always"}],"containers":[{"name":"a"}]},`
	const up = `"ready":true,"state":{"running":{}}`
	const done = `"state":{"terminated":{"exitCode":0,"reason":"Completed"}}`
	const ready = `"conditions":[{"type":"Initialized","status":"True"},{"type":"Ready","status":"True"}],`
	const notReady = `"conditions":[{"type":"Initialized","status":"True"},{"type":"Ready","status":"False"}],`
	rows := []struct{ name, doc, want string }{
		{"not scheduled", `{` + two + `"status":{"phase":"Pending"}}`, "0/2  Pending  0"},
		{"gated", `{` + two + `"status":{"phase":"Pending","conditions":[{"type":"PodScheduled","status":"False","reason":"SchedulingGated"}]}}`, "0/2  SchedulingGated  0"},
		{"reason of the pod", `{` + two + `"status":{"phase":"Failed","reason":"Evicted"}}`, "0/2  Evicted  0"},
		{"creating", `{` + two + `"status":{"phase":"Pending","containerStatuses":[{"name":"a","state":{"waiting":{"reason":"ContainerCreating"}}},{"name":"b","state":{"waiting":{"reason":"ContainerCreating"}}}]}}`, "0/2  ContainerCreating  0"},
		{"running", `{` + two + `"status":{"phase":"Running",` + ready + `"containerStatuses":[{"name":"a",` + up + `},{"name":"b",` + up + `}]}}`, "2/2  Running  0"},
		{"half ready", `{` + two + `"status":{"phase":"Running",` + notReady + `"containerStatuses":[{"name":"a",` + up + `},{"name":"b","ready":false,"state":{"running":{}}}]}}`, "1/2  Running  0"},
		{"crash loop", `{` + two + `"status":{"phase":"Running","containerStatuses":[{"name":"a","restartCount":3,"state":{"waiting":{"reason":"CrashLoopBackOff"}},"lastState":{"terminated":{"finishedAt":"2025-06-01T11:58:00Z"}}},{"name":"b",` + up + `}]}}`, "1/2  CrashLoopBackOff  3 (2m ago)"},
		{"the first container says it", `{` + two + `"status":{"phase":"Running","containerStatuses":[{"name":"a","state":{"terminated":{"exitCode":2,"reason":"Error"}}},{"name":"b","state":{"waiting":{"reason":"CrashLoopBackOff"}}}]}}`, "0/2  Error  0"},
		{"restarts of all, latest end", `{` + two + `"status":{"phase":"Running","containerStatuses":[{"name":"a","restartCount":1,` + up + `,"lastState":{"terminated":{"finishedAt":"2025-06-01T11:00:00Z"}}},{"name":"b","restartCount":2,` + up + `,"lastState":{"terminated":{"finishedAt":"2025-06-01T11:59:00Z"}}}]}}`, "2/2  Running  3 (60s ago)"},
		{"restarts, end unknown", `{` + two + `"status":{"phase":"Running","containerStatuses":[{"name":"a","restartCount":1,` + up + `}]}}`, "1/2  Running  1"},
		{"command does not exist", `{` + two + `"status":{"phase":"Pending","containerStatuses":[{"name":"a","state":{"waiting":{"reason":"CreateContainerError","message":"no such file"}}}]}}`, "0/2  CreateContainerError  0"},
		{"completed", `{` + two + `"status":{"phase":"Succeeded","containerStatuses":[{"name":"a",` + done + `},{"name":"b",` + done + `}]}}`, "0/2  Completed  0"},
		{"failed", `{` + two + `"status":{"phase":"Failed","containerStatuses":[{"name":"a","state":{"terminated":{"exitCode":1,"reason":"Error"}}},{"name":"b",` + done + `}]}}`, "0/2  Error  0"},
		{"exit code", `{` + two + `"status":{"phase":"Failed","containerStatuses":[{"name":"a","state":{"terminated":{"exitCode":7}}}]}}`, "0/2  ExitCode:7  0"},
		{"signal", `{` + two + `"status":{"phase":"Failed","containerStatuses":[{"name":"a","state":{"terminated":{"exitCode":137,"signal":9}}}]}}`, "0/2  Signal:9  0"},
		{"one done, one runs", `{` + two + `"status":{"phase":"Running",` + ready + `"containerStatuses":[{"name":"a",` + done + `},{"name":"b",` + up + `}]}}`, "1/2  Running  0"},
		{"one done, one runs, not ready", `{` + two + `"status":{"phase":"Running",` + notReady + `"containerStatuses":[{"name":"a",` + done + `},{"name":"b",` + up + `}]}}`, "1/2  NotReady  0"},

		{"first init", `{` + init2 + `"status":{"phase":"Pending","initContainerStatuses":[{"name":"i","state":{"running":{}}},{"name":"j","state":{"waiting":{"reason":"PodInitializing"}}}],"containerStatuses":[{"name":"a","state":{"waiting":{"reason":"PodInitializing"}}}]}}`, "0/1  Init:0/2  0"},
		{"second init", `{` + init2 + `"status":{"phase":"Pending","initContainerStatuses":[{"name":"i",` + done + `},{"name":"j","state":{"running":{}}}]}}`, "0/1  Init:1/2  0"},
		{"init failed", `{` + init2 + `"status":{"phase":"Failed","initContainerStatuses":[{"name":"i","restartCount":2,"state":{"terminated":{"exitCode":1,"reason":"Error"}}}]}}`, "0/1  Init:Error  2"},
		{"init exit code", `{` + init2 + `"status":{"phase":"Failed","initContainerStatuses":[{"name":"i","state":{"terminated":{"exitCode":3}}}]}}`, "0/1  Init:ExitCode:3  0"},
		{"init signal", `{` + init2 + `"status":{"phase":"Failed","initContainerStatuses":[{"name":"i","state":{"terminated":{"exitCode":137,"signal":9}}}]}}`, "0/1  Init:Signal:9  0"},
		{"init crash loop", `{` + init2 + `"status":{"phase":"Pending","initContainerStatuses":[{"name":"i","restartCount":4,"state":{"waiting":{"reason":"CrashLoopBackOff"}},"lastState":{"terminated":{"exitCode":1,"finishedAt":"2025-06-01T11:59:50Z"}}}]}}`, "0/1  Init:CrashLoopBackOff  4 (10s ago)"},
		{"all init done", `{` + init2 + `"status":{"phase":"Running",` + ready + `"initContainerStatuses":[{"name":"i","restartCount":1,` + done + `},{"name":"j",` + done + `}],"containerStatuses":[{"name":"a",` + up + `}]}}`, "1/1  Running  0"},
		{"sidecar starts", `{` + side + `"status":{"phase":"Pending","initContainerStatuses":[{"name":"i",` + done + `},{"name":"s","started":false,"state":{"running":{}}}]}}`, "0/2  Init:1/2  0"},
		{"sidecar runs", `{` + side + `"status":{"phase":"Running",` + ready + `"initContainerStatuses":[{"name":"i",` + done + `},{"name":"s","started":true,"restartCount":2,` + up + `,"lastState":{"terminated":{"finishedAt":"2025-06-01T11:59:00Z"}}}],"containerStatuses":[{"name":"a",` + up + `}]}}`, "2/2  Running  2 (60s ago)"},
		{"sidecar not ready", `{` + side + `"status":{"phase":"Running",` + notReady + `"initContainerStatuses":[{"name":"i",` + done + `},{"name":"s","started":true,"state":{"running":{}}}],"containerStatuses":[{"name":"a",` + up + `}]}}`, "1/2  Running  0"},
		{"sidecar crashed later", `{` + side + `"status":{"phase":"Running","conditions":[{"type":"Initialized","status":"True"}],"initContainerStatuses":[{"name":"i",` + done + `},{"name":"s","started":false,"restartCount":1,"state":{"waiting":{"reason":"CrashLoopBackOff"}}}],"containerStatuses":[{"name":"a",` + up + `}]}}`, "1/2  Init:CrashLoopBackOff  1"},

		{"terminating", `{"metadata":{"deletionTimestamp":"2025-06-01T11:59:00Z"},` + two + `"status":{"phase":"Running","containerStatuses":[{"name":"a",` + up + `}]}}`, "1/2  Terminating  0"},
		{"terminating, but done", `{"metadata":{"deletionTimestamp":"2025-06-01T11:59:00Z"},` + two + `"status":{"phase":"Succeeded","containerStatuses":[{"name":"a",` + done + `}]}}`, "0/2  Completed  0"},
		{"terminating, node lost", `{"metadata":{"deletionTimestamp":"2025-06-01T11:59:00Z"},` + two + `"status":{"phase":"Running","reason":"NodeLost"}}`, "0/2  Unknown  0"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			got := cells(t, "pod", decode(t, "pod", row.doc))
			if want := "x  " + row.want + "  5m | <none>  <none>  <none>  <none>"; got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func TestPodWide(t *testing.T) {
	got := cells(t, "pod", decode(t, "pod", `{"spec":{"nodeName":"n1","containers":[{"name":"a"}],"readinessGates":[{"conditionType":"a.example/up"},{"conditionType":"b.example/up"},{"conditionType":"c.example/up"}]},
		"status":{"phase":"Running","podIP":"10.244.1.2","podIPs":[{"ip":"10.244.1.2"},{"ip":"fd00::2"}],"nominatedNodeName":"n2","conditions":[{"type":"a.example/up","status":"True"},{"type":"b.example/up","status":"False"}]}}`))
	if want := "x  0/1  Running  0  5m | 10.244.1.2  n1  n2  1/3"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestEndedPods: kubectl can tell them from the row.
func TestEndedPods(t *testing.T) {
	for phase, want := range map[string]string{"Succeeded": "The pod has completed successfully.", "Failed": "The pod failed.", "Running": ""} {
		table, err := For(corev1.Resource("pods")).ConvertToTable(context.Background(), decode(t, "pod", `{"status":{"phase":"`+phase+`"}}`), nil)
		if err != nil {
			t.Fatal(err)
		}
		c := table.Rows[0].Conditions
		if want == "" && len(c) > 0 || want != "" && (len(c) != 1 || c[0].Type != metav1.RowCompleted || c[0].Status != metav1.ConditionTrue || c[0].Reason != phase || c[0].Message != want) {
			t.Errorf("%s: got %v", phase, c)
		}
	}
}

// TestAsKubectlPrints: the library that kubectl prints with makes of the
// tables what people know.
func TestAsKubectlPrints(t *testing.T) {
	list := &corev1.ServiceList{}
	for _, doc := range []string{
		`{"metadata":{"name":"kubernetes"},"spec":{"type":"ClusterIP","clusterIP":"10.96.0.1","ports":[{"port":443,"protocol":"TCP"}]}}`,
		`{"metadata":{"name":"orders"},"spec":{"type":"ClusterIP","clusterIP":"10.96.55.7","ports":[{"port":80,"protocol":"TCP"}],"selector":{"app":"orders"}}}`,
	} {
		list.Items = append(list.Items, *decode(t, "service", doc).(*corev1.Service))
	}
	for wide, want := range map[bool]string{
		false: `
NAME         TYPE        CLUSTER-IP   EXTERNAL-IP   PORT(S)   AGE
kubernetes   ClusterIP   10.96.0.1    <none>        443/TCP   5m
orders       ClusterIP   10.96.55.7   <none>        80/TCP    5m
`,
		true: `
NAME         TYPE        CLUSTER-IP   EXTERNAL-IP   PORT(S)   AGE   SELECTOR
kubernetes   ClusterIP   10.96.0.1    <none>        443/TCP   5m    <none>
orders       ClusterIP   10.96.55.7   <none>        80/TCP    5m    app=orders
`,
	} {
		table, err := For(corev1.Resource("services")).ConvertToTable(context.Background(), list, nil)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := printers.NewTablePrinter(printers.PrintOptions{Wide: wide}).PrintObj(table, &out); err != nil {
			t.Fatal(err)
		}
		if got := out.String(); got != strings.TrimPrefix(want, "\n") {
			t.Errorf("wide %t: got\n%s", wide, got)
		}
	}
}

func TestListMetadata(t *testing.T) {
	left := int64(7)
	list := &corev1.NamespaceList{
		ListMeta: metav1.ListMeta{ResourceVersion: "12", Continue: "more", RemainingItemCount: &left},
		Items:    []corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, {ObjectMeta: metav1.ObjectMeta{Name: "b"}}},
	}
	c := For(corev1.Resource("namespaces"))
	table, err := c.ConvertToTable(context.Background(), list, &metav1.TableOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if table.ResourceVersion != "12" || table.Continue != "more" || *table.RemainingItemCount != 7 || len(table.Rows) != 2 || len(table.ColumnDefinitions) != 3 {
		t.Errorf("got %+v", table)
	}
	// The rows carry the objects themselves, for the library to cut down.
	if table.Rows[1].Object.Object != runtime.Object(&list.Items[1]) {
		t.Errorf("got %v", table.Rows[1].Object.Object)
	}
	table, err = c.ConvertToTable(context.Background(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{ResourceVersion: "3"}}, &metav1.TableOptions{NoHeaders: true})
	if err != nil || table.ResourceVersion != "3" || len(table.Rows) != 1 || table.ColumnDefinitions != nil {
		t.Errorf("got %+v (%v)", table, err)
	}
	table, err = c.ConvertToTable(context.Background(), &corev1.NamespaceList{}, (*metav1.TableOptions)(nil))
	if err != nil || len(table.Rows) != 0 || len(table.ColumnDefinitions) != 3 {
		t.Errorf("got %+v (%v)", table, err)
	}
}

// TestOtherKinds: what is not of the kind (the answer to a deletion is a
// Status) is refused in the way that makes the library send it as it is.
func TestOtherKinds(t *testing.T) {
	for kind, k := range kinds {
		_, err := For(k.resource).ConvertToTable(context.Background(), &metav1.Status{}, nil)
		status, ok := err.(apierrors.APIStatus)
		if !ok || status.Status().Code != http.StatusNotAcceptable || status.Status().Reason != metav1.StatusReasonNotAcceptable {
			t.Errorf("%s: got %v", kind, err)
		}
		want := fmt.Sprintf("the resource %s does not print *v1.Status", k.resource)
		if err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %s", kind, err, want)
		}
	}
}

// TestUnknownResource gets the library's table.
func TestUnknownResource(t *testing.T) {
	table, err := For(schema.GroupResource{Resource: "secrets"}).ConvertToTable(context.Background(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, nil)
	if err != nil || len(table.ColumnDefinitions) != 2 || table.Rows[0].Cells[0] != "a" {
		t.Errorf("got %+v (%v)", table, err)
	}
}

// TestAnything: whatever is stored, every row has a cell for every column, of
// a type that JSON and kubectl take.
func TestAnything(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	filler := randfill.NewWithSeed(seed).NilChance(0.3).NumElements(0, 4).MaxDepth(10)
	for kind, k := range kinds {
		for range 20 {
			for _, obj := range []runtime.Object{k.object(), k.list()} {
				filler.Fill(obj)
				table, err := For(k.resource).ConvertToTable(context.Background(), obj, nil)
				if err != nil {
					t.Fatalf("%s: %v", kind, err)
				}
				for _, row := range table.Rows {
					if len(row.Cells) != len(table.ColumnDefinitions) {
						t.Fatalf("%s: %d cells in %d columns", kind, len(row.Cells), len(table.ColumnDefinitions))
					}
					for i, cell := range row.Cells {
						switch cell.(type) {
						case string:
							if table.ColumnDefinitions[i].Type != "string" {
								t.Errorf("%s: column %d is a string", kind, i)
							}
						case int64:
							if table.ColumnDefinitions[i].Type != "integer" {
								t.Errorf("%s: column %d is an integer", kind, i)
							}
						default:
							t.Errorf("%s: column %d is %T", kind, i, cell)
						}
					}
				}
			}
		}
	}
}
