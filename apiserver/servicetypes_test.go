// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	applycore "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/kubernetes"
	restclient "k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/fairlead/fairlead/apiserver/nodeport"
)

// database is a client of the server's etcd, which reads what is there whatever
// the server says.
func database(t testing.TB, i *instance) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{i.server.etcd.endpoint}})
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

const portLockKeys = etcdPrefix + "/nodeports/"

// portLocks are the locks on node ports in the database, by number.
func portLocks(t testing.TB, i *instance) map[int]*nodeport.Lock {
	t.Helper()
	c := database(t, i)
	defer c.Close()
	found, err := c.Get(t.Context(), portLockKeys, clientv3.WithPrefix())
	must(t, err)
	codec, _, err := i.server.kinds.storageCodec()
	must(t, err)
	locks := map[int]*nodeport.Lock{}
	for _, kv := range found.Kvs {
		obj, err := runtime.Decode(codec, kv.Value)
		must(t, err)
		lock, err := portLock(obj.(*coordinationv1.Lease))
		must(t, err)
		if string(kv.Key) != portLockKeys+strconv.Itoa(lock.Port) {
			t.Errorf("the lock on %d is at %s", lock.Port, kv.Key)
		}
		locks[lock.Port] = lock
	}
	return locks
}

// portsOf are the numbers that a Service has. In one of another type, as Kubernetes stores it too, a number means nothing.
func portsOf(s *corev1.Service) (ports []int) {
	if s.Spec.Type != corev1.ServiceTypeNodePort && s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return nil
	}
	for _, port := range s.Spec.Ports {
		if port.NodePort != 0 && !slices.Contains(ports, int(port.NodePort)) {
			ports = append(ports, int(port.NodePort))
		}
	}
	if s.Spec.HealthCheckNodePort != 0 {
		ports = append(ports, int(s.Spec.HealthCheckNodePort))
	}
	return ports
}

// checkPorts checks that every node port of every Service has that Service's
// lock, that no number is two Services', and that there is no other lock.
func checkPorts(t testing.TB, i *instance) {
	t.Helper()
	list, err := i.admin(t).CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
	must(t, err)
	locks := portLocks(t, i)
	for _, s := range list.Items {
		for _, port := range portsOf(&s) {
			lock, ok := locks[port]
			switch {
			case !ok:
				t.Errorf("%d of %s/%s, of type %s, has no lock of its own", port, s.Namespace, s.Name, s.Spec.Type)
			case lock.Owner.Namespace != s.Namespace || lock.Owner.Name != s.Name || lock.Owner.UID != s.UID:
				t.Errorf("%d of %s/%s is locked for %v", port, s.Namespace, s.Name, lock.Owner)
			}
			delete(locks, port)
		}
	}
	for port, lock := range locks {
		t.Errorf("%d is locked for %v, which does not have it", port, lock.Owner)
	}
}

// asked is a Service of a type, with a port and a named second one.
func asked(name string, kind corev1.ServiceType) *corev1.Service {
	s := service(name)
	s.Spec.Type = kind
	s.Spec.Ports = []corev1.ServicePort{{Name: "web", Port: 80}, {Name: "admin", Port: 81}}
	return s
}

// step is one patch of a Service and what it must be like afterwards.
type step struct {
	name, patch string
	want        string // as show prints it
}

// show is what a Service's type decides: ? for an allocated value.
func show(s *corev1.Service) string {
	number := func(n int32) string {
		if n == 0 {
			return "-"
		}
		return "?"
	}
	ports := ""
	for _, port := range s.Spec.Ports {
		ports += number(port.NodePort)
	}
	words := []string{string(s.Spec.Type), "ip=" + or(s.Spec.ClusterIP), "ports=" + ports, "health=" + number(s.Spec.HealthCheckNodePort)}
	if p := s.Spec.ExternalTrafficPolicy; p != "" {
		words = append(words, "external="+string(p))
	}
	if p := s.Spec.InternalTrafficPolicy; p != nil {
		words = append(words, "internal="+string(*p))
	}
	if a := s.Spec.AllocateLoadBalancerNodePorts; a != nil {
		words = append(words, fmt.Sprint("allocate=", *a))
	}
	if c := s.Spec.LoadBalancerClass; c != nil {
		words = append(words, "class="+*c)
	}
	for _, in := range s.Status.LoadBalancer.Ingress {
		words = append(words, "ingress="+in.IP+in.Hostname)
	}
	return strings.Join(words, " ")
}

func or(ip string) string {
	switch ip {
	case "":
		return "-"
	case corev1.ClusterIPNone:
		return ip
	}
	return "?"
}

// TestServiceTypeChanges walks a Service through the types by patches that name
// only what the user means to change.
func TestServiceTypeChanges(t *testing.T) {
	i, ns := sharedServer(t)
	services := i.admin(t).CoreV1().Services(ns)
	made, err := services.Create(t.Context(), asked("s", corev1.ServiceTypeClusterIP), metav1.CreateOptions{})
	must(t, err)
	if got := show(made); got != "ClusterIP ip=? ports=-- health=- internal=Cluster" {
		t.Fatalf("created %s", got)
	}
	previous := made
	for _, row := range []step{
		{"to node port", `{"spec":{"type":"NodePort"}}`, "NodePort ip=? ports=?? health=- external=Cluster internal=Cluster"},
		{"node port local", `{"spec":{"externalTrafficPolicy":"Local"}}`, "NodePort ip=? ports=?? health=- external=Local internal=Cluster"},
		{"to load balancer", `{"spec":{"type":"LoadBalancer"}}`, "LoadBalancer ip=? ports=?? health=? external=Local internal=Cluster allocate=true"},
		{"policy Cluster", `{"spec":{"externalTrafficPolicy":"Cluster"}}`, "LoadBalancer ip=? ports=?? health=- external=Cluster internal=Cluster allocate=true"},
		{"no more node ports", `{"spec":{"allocateLoadBalancerNodePorts":false}}`, "LoadBalancer ip=? ports=?? health=- external=Cluster internal=Cluster allocate=false"},
		{"nor those", `{"spec":{"ports":[{"name":"web","port":80},{"name":"admin","port":81}]}}`, "LoadBalancer ip=? ports=-- health=- external=Cluster internal=Cluster allocate=false"},
		{"local again", `{"spec":{"externalTrafficPolicy":"Local","allocateLoadBalancerNodePorts":true}}`, "LoadBalancer ip=? ports=?? health=? external=Local internal=Cluster allocate=true"},
		{"to cluster address", `{"spec":{"type":"ClusterIP"}}`, "ClusterIP ip=? ports=-- health=- internal=Cluster"},
		{"load balancer of a class", `{"spec":{"type":"LoadBalancer","loadBalancerClass":"example.com/a","externalTrafficPolicy":"Local"}}`, "LoadBalancer ip=? ports=?? health=? external=Local internal=Cluster allocate=true class=example.com/a"},
		{"to external name", `{"spec":{"type":"ExternalName","externalName":"a.example"}}`, "ExternalName ip=- ports=-- health=-"},
		{"to headless", `{"spec":{"type":"ClusterIP","clusterIP":"None","externalName":null}}`, "ClusterIP ip=None ports=-- health=- internal=Cluster"},
		{"to external name again", `{"spec":{"type":"ExternalName","externalName":"a.example"}}`, "ExternalName ip=- ports=-- health=-"},
		{"to node port at once", `{"spec":{"type":"NodePort","ports":[{"name":"web","port":80,"nodePort":30011},{"name":"admin","port":81}]}}`, "NodePort ip=? ports=?? health=- external=Cluster internal=Cluster"},
		{"with external address", `{"spec":{"type":"ClusterIP","externalIPs":["192.0.2.1"]}}`, "ClusterIP ip=? ports=-- health=- external=Cluster internal=Cluster"},
		{"without", `{"spec":{"externalIPs":null}}`, "ClusterIP ip=? ports=-- health=- internal=Cluster"},
	} {
		got, err := services.Patch(t.Context(), "s", types.MergePatchType, []byte(row.patch), metav1.PatchOptions{})
		if err != nil {
			t.Fatalf("%s: %v", row.name, err)
		}
		if show(got) != row.want {
			t.Errorf("%s: got  %s\nwant %s", row.name, show(got), row.want)
		}
		if was := previous.Spec.ClusterIP; was != "" && got.Spec.ClusterIP != "" && got.Spec.ClusterIP != was && previous.Spec.Type != corev1.ServiceTypeExternalName {
			t.Errorf("%s: the address has changed from %s to %s", row.name, was, got.Spec.ClusterIP)
		}
		if len(portsOf(previous)) > 1 && strings.Contains(row.want, "ports=??") && !slices.Equal(nodePorts(previous), nodePorts(got)) {
			t.Errorf("%s: node ports have changed from %v to %v", row.name, nodePorts(previous), nodePorts(got))
		}
		checkPorts(t, i)
		checkLocks(t, i.admin(t), ns)
		previous = got
	}
	must(t, services.Delete(t.Context(), "s", metav1.DeleteOptions{}))
	checkPorts(t, i)
}

func nodePorts(s *corev1.Service) (ports []int32) {
	for _, port := range s.Spec.Ports {
		ports = append(ports, port.NodePort)
	}
	return ports
}

// TestServiceKeepsAllocated: whoever leaves allocated values out, by replacing
// or applying, keeps them.
func TestServiceKeepsAllocated(t *testing.T) {
	i, ns := sharedServer(t)
	services := i.admin(t).CoreV1().Services(ns)
	wanted := asked("s", corev1.ServiceTypeLoadBalancer)
	wanted.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	made, err := services.Create(t.Context(), wanted, metav1.CreateOptions{})
	must(t, err)
	for _, version := range []string{made.ResourceVersion, ""} { // that one, and whatever is there
		update := wanted.DeepCopy()
		update.ResourceVersion = version
		update.Labels = map[string]string{"x": "y" + version}
		got, err := services.Update(t.Context(), update, metav1.UpdateOptions{})
		must(t, err)
		if got.Spec.ClusterIP != made.Spec.ClusterIP || !slices.Equal(portsOf(got), portsOf(made)) {
			t.Errorf("replace version %q: %s %v, before %s %v", version, got.Spec.ClusterIP, portsOf(got), made.Spec.ClusterIP, portsOf(made))
		}
	}
	apply := applycore.Service("s", ns).WithSpec(applycore.ServiceSpec().WithPorts(
		applycore.ServicePort().WithName("web").WithPort(80).WithProtocol(corev1.ProtocolTCP), applycore.ServicePort().WithName("new").WithPort(82)))
	got, err := services.Apply(t.Context(), apply, metav1.ApplyOptions{FieldManager: "test", Force: true})
	must(t, err)
	if now, before := portsOf(got), portsOf(made); len(now) != 4 || now[0] != before[0] || now[1] != before[1] || now[3] != before[2] {
		t.Errorf("apply: %v, before %v", now, before)
	}
	checkPorts(t, i)
}

// TestServicePutCreates: as in Kubernetes, a PUT makes a Service that is missing.
func TestServicePutCreates(t *testing.T) {
	i, ns := sharedServer(t)
	services := i.admin(t).CoreV1().Services(ns)
	got, err := services.Update(t.Context(), asked("put", corev1.ServiceTypeNodePort), metav1.UpdateOptions{})
	must(t, err)
	if len(portsOf(got)) != 2 || got.Spec.ClusterIP == "" {
		t.Errorf("spec %v", got.Spec)
	}
	checkPorts(t, i)
	checkLocks(t, i.admin(t), ns)
}

// TestServicePortErrors checks the words that users know, and that what failed
// holds nothing.
func TestServicePortErrors(t *testing.T) {
	i, ns := sharedServer(t)
	services := i.admin(t).CoreV1().Services(ns)
	mine := asked("mine", corev1.ServiceTypeNodePort)
	mine.Spec.Ports[0].NodePort = 30050
	_, err := services.Create(t.Context(), mine, metav1.CreateOptions{})
	must(t, err)
	create := func(edit func(*corev1.Service)) func() error {
		return func() error {
			s := asked("other", corev1.ServiceTypeNodePort)
			edit(s)
			_, err := services.Create(t.Context(), s, metav1.CreateOptions{})
			return err
		}
	}
	patch := func(p string) func() error {
		return func() error {
			_, err := services.Patch(t.Context(), "mine", types.MergePatchType, []byte(p), metav1.PatchOptions{})
			return err
		}
	}
	for _, row := range []struct {
		name string
		do   func() error
		want string
	}{
		{"taken", create(func(s *corev1.Service) { s.Spec.Ports[1].NodePort = 30050 }),
			`Service "other" is invalid: spec.ports[1].nodePort: Invalid value: 30050: provided port is already allocated`},
		{"out of range", create(func(s *corev1.Service) { s.Spec.Ports[0].NodePort = 8080 }),
			`Service "other" is invalid: spec.ports[0].nodePort: Invalid value: 8080: provided port is not in the valid range. The range of valid ports is 30000-32767`},
		{"twice", create(func(s *corev1.Service) { s.Spec.Ports[0].NodePort, s.Spec.Ports[1].NodePort = 30051, 30051 }),
			`Service "other" is invalid: spec.ports[1].nodePort: Duplicate value: 30051`},
		{"invalid after allocation", create(func(s *corev1.Service) { s.Spec.Ports[0].Port = 0 }),
			`spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive`},
		{"headless", create(func(s *corev1.Service) { s.Spec.ClusterIP = "None" }),
			`spec.clusterIPs[0]: Invalid value: "None": may not be set to 'None' for NodePort services`},
		{"health check taken", create(func(s *corev1.Service) {
			s.Spec.Type, s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal, 30050
		}), `spec.healthCheckNodePort: Invalid value: 30050: failed to allocate requested HealthCheck NodePort 30050: provided port is already allocated`},
		{"node port with another type", create(func(s *corev1.Service) {
			s.Spec.Type, s.Spec.Ports[0].NodePort = corev1.ServiceTypeClusterIP, 30052
		}), "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"},
		{"another number while the type changes", patch(`{"spec":{"type":"ClusterIP","ports":[{"name":"web","port":80,"nodePort":30053}]}}`),
			"spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"},
		{"to headless", patch(`{"spec":{"type":"ClusterIP","clusterIP":"None"}}`), `spec.clusterIPs[0]: Invalid value: ["None"]: may not change once set`},
		{"policy while the type changes", patch(`{"spec":{"type":"ClusterIP","externalTrafficPolicy":"Local"}}`),
			`spec.externalTrafficPolicy: Invalid value: "Local": may only be set for externally-accessible services`},
	} {
		t.Run(row.name, func(t *testing.T) {
			if err := row.do(); err == nil || !strings.Contains(err.Error(), row.want) || !apierrors.IsInvalid(err) {
				t.Errorf("got  %v\nwant %s", err, row.want)
			}
		})
	}
	checkPorts(t, i)
	checkLocks(t, i.admin(t), ns)
}

// TestLoadBalancerStatus: whoever makes load balancers writes the status by the
// subresource, and nobody by the Service; it goes with the type.
func TestLoadBalancerStatus(t *testing.T) {
	i, ns := sharedServer(t)
	services := i.admin(t).CoreV1().Services(ns)
	s := asked("lb", corev1.ServiceTypeLoadBalancer)
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.9"}}
	made, err := services.Create(t.Context(), s, metav1.CreateOptions{})
	must(t, err)
	if len(made.Status.LoadBalancer.Ingress) > 0 {
		t.Errorf("created with %v", made.Status)
	}
	patch := []byte(`{"status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.1"},{"ip":"2001:db8::1","ipMode":"Proxy"},{"hostname":"lb.example.com"}]}}}`)
	for _, kind := range []types.PatchType{types.MergePatchType, types.StrategicMergePatchType} {
		got, err := services.Patch(t.Context(), "lb", kind, patch, metav1.PatchOptions{}, "status")
		must(t, err)
		in := got.Status.LoadBalancer.Ingress
		if len(in) != 3 || *in[0].IPMode != corev1.LoadBalancerIPModeVIP || *in[1].IPMode != corev1.LoadBalancerIPModeProxy || in[2].IPMode != nil {
			t.Errorf("%s: %v", kind, in)
		}
	}
	applied, err := services.ApplyStatus(t.Context(), applycore.Service("lb", ns).WithStatus(applycore.ServiceStatus().WithLoadBalancer(
		applycore.LoadBalancerStatus().WithIngress(applycore.LoadBalancerIngress().WithIP("192.0.2.2")))), metav1.ApplyOptions{FieldManager: "balancer", Force: true})
	must(t, err)
	if in := applied.Status.LoadBalancer.Ingress; len(in) != 1 || in[0].IP != "192.0.2.2" || *in[0].IPMode != corev1.LoadBalancerIPModeVIP {
		t.Errorf("applied: %v", in)
	}
	got, err := services.Patch(t.Context(), "lb", types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}},"status":{"loadBalancer":{"ingress":null}}}`), metav1.PatchOptions{})
	must(t, err)
	if len(got.Status.LoadBalancer.Ingress) != 1 {
		t.Errorf("a write to the Service changed %v", got.Status)
	}
	_, err = services.Patch(t.Context(), "lb", types.MergePatchType, []byte(`{"status":{"loadBalancer":{"ingress":[{"ip":"x"}]}}}`), metav1.PatchOptions{}, "status")
	if err == nil || !strings.Contains(err.Error(), `status.loadBalancer.ingress[0].ip: Invalid value: "x": must be a valid IP address`) {
		t.Errorf("bad address: %v", err)
	}
	got, err = services.Patch(t.Context(), "lb", types.MergePatchType, []byte(`{"spec":{"type":"NodePort"}}`), metav1.PatchOptions{})
	must(t, err)
	if len(got.Status.LoadBalancer.Ingress) > 0 {
		t.Errorf("left of the load balancer: %v", got.Status)
	}
	_, err = services.Patch(t.Context(), "lb", types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	if err == nil || !strings.Contains(err.Error(), "status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is 'LoadBalancer'") {
		t.Errorf("no load balancer: %v", err)
	}
}

// TestServiceTable is what kubectl get services shows.
func TestServiceTable(t *testing.T) {
	i, ns := sharedServer(t)
	c := i.admin(t)
	s := asked("lb", corev1.ServiceTypeLoadBalancer)
	s.Spec.ClusterIP = "10.96.0.33"
	s.Spec.Ports[0].NodePort, s.Spec.Ports[1].NodePort, s.Spec.Ports[1].Protocol = 30060, 30061, corev1.ProtocolSCTP
	_, err := c.CoreV1().Services(ns).Create(t.Context(), s, metav1.CreateOptions{})
	must(t, err)
	row := func() string {
		body, err := c.CoreV1().RESTClient().Get().Namespace(ns).Resource("services").SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").DoRaw(t.Context())
		must(t, err)
		table := metav1.Table{}
		must(t, json.Unmarshal(body, &table))
		return fmt.Sprint(table.Rows[0].Cells[:5])
	}
	if got := row(); got != "[lb LoadBalancer 10.96.0.33 <pending> 80:30060/TCP,81:30061/SCTP]" {
		t.Error(got)
	}
	_, err = c.CoreV1().Services(ns).Patch(t.Context(), "lb", types.MergePatchType, []byte(`{"status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.1"},{"hostname":"lb.example"}]}}}`), metav1.PatchOptions{}, "status")
	must(t, err)
	if got := row(); got != "[lb LoadBalancer 10.96.0.33 192.0.2.1,lb.example 80:30060/TCP,81:30061/SCTP]" {
		t.Error(got)
	}
}

// TestServiceWarning: a client is told what has no effect.
func TestServiceWarning(t *testing.T) {
	i, ns := sharedServer(t)
	config := i.config(t, "admin", "system:masters")
	heard := &warnings{}
	config.WarningHandler = heard
	c, err := kubernetes.NewForConfig(config)
	must(t, err)
	s := service("s")
	s.Spec.ExternalName = "a.example"
	_, err = c.CoreV1().Services(ns).Create(t.Context(), s, metav1.CreateOptions{})
	must(t, err)
	if want := []string{`spec.externalName is ignored when spec.type is not "ExternalName"`}; !slices.Equal(heard.texts, want) {
		t.Errorf("heard %q, want %q", heard.texts, want)
	}
}

type warnings struct{ texts []string }

var _ restclient.WarningHandler = (*warnings)(nil)

func (w *warnings) HandleWarningHeader(code int, _ string, text string) {
	if code == 299 {
		w.texts = append(w.texts, text)
	}
}

// TestNodePortsHidden: the locks on node ports are no part of the API.
func TestNodePortsHidden(t *testing.T) {
	i, _ := sharedServer(t)
	err := i.admin(t).CoreV1().RESTClient().Get().Resource("nodeports").Do(t.Context()).Error()
	status, ok := err.(apierrors.APIStatus)
	if !ok || status.Status().Code != http.StatusNotFound {
		t.Errorf("got %v", err)
	}
}

// TestNodePortRace: many creators, changers and deleters at once, of which some
// fail, in a small range, share no number and leave no lock behind; nor does a
// server that is started on what they left.
func TestNodePortRace(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	dir := t.TempDir()
	ports := utilnet.PortRange{Base: 31000, Size: 50}
	i, err := startWith(dir, func(c *Config) { c.NodePorts = ports })
	must(t, err)
	services := i.admin(t).CoreV1().Services("default")
	patches := []string{
		`{"spec":{"type":"ClusterIP"}}`, `{"spec":{"type":"NodePort"}}`, `{"spec":{"type":"LoadBalancer","externalTrafficPolicy":"Local"}}`,
		`{"spec":{"type":"ExternalName","externalName":"a.example"}}`, `{"metadata":{"labels":{"x":"%d"}}}`,
		`{"spec":{"ports":[{"name":"web","port":80,"nodePort":%d},{"name":"admin","port":81}]}}`, `{"spec":{"externalTrafficPolicy":"Cluster"}}`,
	}
	var wg sync.WaitGroup
	for worker := range 8 {
		random := rand.New(rand.NewPCG(seed, uint64(worker)))
		wg.Go(func() {
			for range 30 {
				name := fmt.Sprint("s", random.IntN(12))
				var err error
				switch random.IntN(6) {
				case 0, 1:
					s := asked(name, corev1.ServiceTypeNodePort)
					if random.IntN(3) == 0 {
						s.Spec.Ports[0].NodePort = int32(ports.Base + random.IntN(ports.Size))
					}
					if random.IntN(4) == 0 {
						s.Spec.Ports[1].Port = 70000
					}
					_, err = services.Create(t.Context(), s, metav1.CreateOptions{})
				case 2:
					err = services.Delete(t.Context(), name, metav1.DeleteOptions{})
				default:
					patch := patches[random.IntN(len(patches))]
					if strings.Contains(patch, "%d") {
						patch = fmt.Sprintf(patch, ports.Base+random.IntN(ports.Size))
					}
					_, err = services.Patch(t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
				}
				full := err != nil && strings.Contains(err.Error(), "range is full")
				if err != nil && !apierrors.IsConflict(err) && !apierrors.IsInvalid(err) && !apierrors.IsNotFound(err) && !apierrors.IsAlreadyExists(err) && !full {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	checkPorts(t, i)
	checkLocks(t, i.admin(t), "default")
	before := portLocks(t, i)
	must(t, i.stop())
	i, err = startWith(dir, func(c *Config) { c.NodePorts = ports })
	i.ends(t, err)
	checkPorts(t, i)
	if after := portLocks(t, i); len(after) != len(before) {
		t.Errorf("%d locks, before the restart %d", len(after), len(before))
	}
	// Whatever is free can be had, one by one, and then no more.
	services = i.admin(t).CoreV1().Services("default")
	for n := len(before); n < ports.Size; n++ {
		s := service(fmt.Sprint("fill", n))
		s.Spec.Type = corev1.ServiceTypeNodePort
		_, err := services.Create(t.Context(), s, metav1.CreateOptions{})
		must(t, err)
	}
	checkPorts(t, i)
	s := service("late")
	s.Spec.Type = corev1.ServiceTypeNodePort
	if _, err := services.Create(t.Context(), s, metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "failed to allocate a nodePort: range is full") {
		t.Errorf("full: %v", err)
	}
}

// TestNodePortRepair: what a crash between two writes leaves is mended. The
// server's own first pass is over by then; it says what it cannot mend.
func TestNodePortRepair(t *testing.T) {
	dir := t.TempDir()
	i, err := start(dir)
	must(t, err)
	outside := asked("outside", corev1.ServiceTypeNodePort)
	outside.Spec.Ports[0].NodePort, outside.Spec.Ports[1].NodePort = 32000, 30000
	_, err = i.admin(t).CoreV1().Services("default").Create(t.Context(), outside, metav1.CreateOptions{})
	must(t, err)
	must(t, i.stop())
	passed := &heard{text: `"service node port was wrong" finding="out of range 32000 default/outside" mended=false`, yes: make(chan struct{})}
	i, err = startWith(dir, func(c *Config) {
		c.NodePorts, c.Logger = utilnet.PortRange{Base: 30000, Size: 1000}, slog.New(slog.NewTextHandler(passed, nil))
	})
	i.ends(t, err)
	select {
	case <-passed.yes:
	case <-time.After(patience):
		t.Fatalf("nobody said %s", passed.text)
	}
	services := i.admin(t).CoreV1().Services("default")
	made, err := services.Create(t.Context(), asked("s", corev1.ServiceTypeNodePort), metav1.CreateOptions{})
	must(t, err)
	never, err := services.Create(t.Context(), asked("never", corev1.ServiceTypeNodePort), metav1.CreateOptions{})
	must(t, err)
	lost := portsOf(made)[0]
	// One lost its lock, another was never stored although it has two.
	for _, key := range []string{portLockKeys + strconv.Itoa(lost), etcdPrefix + "/services/default/never"} {
		gone, err := database(t, i).Delete(t.Context(), key)
		if err != nil || gone.Deleted != 1 {
			t.Fatalf("delete %s: %v", key, err)
		}
	}
	allocator := *i.server.services.ports
	allocator.Grace = 0
	list, err := services.List(t.Context(), metav1.ListOptions{})
	must(t, err)
	findings, err := allocator.Repair(t.Context(), list.Items)
	must(t, err)
	var found []string
	for _, f := range findings {
		found = append(found, f.String())
	}
	want := []string{"out of range 32000 default/outside", fmt.Sprintf("missing %d default/s", lost), fmt.Sprint("orphaned ", portsOf(never)[0]), fmt.Sprint("orphaned ", portsOf(never)[1])}
	slices.Sort(found)
	slices.Sort(want)
	if !slices.Equal(found, want) {
		t.Errorf("found %q, want %q", found, want)
	}
	checkPorts(t, i)
}

// heard waits for a text in what is written.
type heard struct {
	text string
	yes  chan struct{}
	once sync.Once
}

func (h *heard) Write(p []byte) (int, error) {
	if strings.Contains(string(p), h.text) {
		h.once.Do(func() { close(h.yes) })
	}
	return len(p), nil
}

// TestServiceDryRunPorts: dry runs lock nothing and store nothing.
func TestServiceDryRunPorts(t *testing.T) {
	i, ns := sharedServer(t)
	services := i.admin(t).CoreV1().Services(ns)
	dry := []string{metav1.DryRunAll}
	got, err := services.Create(t.Context(), asked("dry", corev1.ServiceTypeNodePort), metav1.CreateOptions{DryRun: dry})
	must(t, err)
	if len(portsOf(got)) != 2 {
		t.Errorf("ports %v", portsOf(got))
	}
	_, err = services.Create(t.Context(), asked("wet", corev1.ServiceTypeNodePort), metav1.CreateOptions{})
	must(t, err)
	_, err = services.Patch(t.Context(), "wet", types.MergePatchType, []byte(`{"spec":{"type":"ClusterIP"}}`), metav1.PatchOptions{DryRun: dry})
	must(t, err)
	must(t, services.Delete(t.Context(), "wet", metav1.DeleteOptions{DryRun: dry}))
	checkPorts(t, i)
}

// TestServiceRetried: a change that meets another one is tried again, and what
// its first try had locked does not stand in its way.
func TestServiceRetried(t *testing.T) {
	i, ns := sharedServer(t)
	client := i.admin(t).CoreV1().Services(ns)
	for _, row := range []struct {
		name   string
		before corev1.ServiceType
		edit   func(*corev1.ServiceSpec)
		want   string // as show prints it
	}{
		{"node-port", corev1.ServiceTypeClusterIP, func(s *corev1.ServiceSpec) {
			s.Type, s.Ports[0].NodePort, s.ExternalTrafficPolicy = corev1.ServiceTypeNodePort, 30070, corev1.ServiceExternalTrafficPolicyCluster
		}, "NodePort ip=? ports=?? health=- external=Cluster internal=Cluster"},
		{"health-check", corev1.ServiceTypeLoadBalancer, func(s *corev1.ServiceSpec) {
			s.ExternalTrafficPolicy, s.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, 30071
		}, "LoadBalancer ip=? ports=?? health=? external=Local internal=Cluster allocate=true"},
		{"address", corev1.ServiceTypeExternalName, func(s *corev1.ServiceSpec) {
			s.Type, s.ClusterIP, s.InternalTrafficPolicy = corev1.ServiceTypeClusterIP, "10.96.0.79", ptr.To(corev1.ServiceInternalTrafficPolicyCluster)
		}, "ClusterIP ip=? ports=-- health=- internal=Cluster"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := asked(row.name, row.before)
			s.Spec.ExternalName = "a.example"
			_, err := client.Create(t.Context(), s, metav1.CreateOptions{})
			must(t, err)
			tries := 0
			change := func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
				if tries++; tries == 1 {
					_, err := client.Patch(t.Context(), row.name, types.MergePatchType, []byte(`{"metadata":{"labels":{"x":"y"}}}`), metav1.PatchOptions{})
					must(t, err)
				}
				s := old.DeepCopyObject().(*corev1.Service)
				row.edit(&s.Spec)
				return s, nil
			}
			ctx := request.WithNamespace(t.Context(), ns)
			obj, _, err := i.server.services.Update(ctx, row.name, rest.DefaultUpdatedObjectInfo(nil, change),
				rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
			must(t, err)
			got := obj.(*corev1.Service)
			if show(got) != row.want || got.Labels["x"] != "y" || tries != 2 {
				t.Errorf("%d tries, labels %v: got  %s\nwant %s", tries, got.Labels, show(got), row.want)
			}
			checkPorts(t, i)
			checkLocks(t, i.admin(t), ns)
		})
	}
}
