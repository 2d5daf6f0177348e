// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/utils/ptr"
)

// group is a number of Services with as many endpoints each.
type group struct{ services, endpoints int }

// crowd is how large a cluster is.
type crowd struct {
	groups      []group
	nodes, pods int // pods of the one node that is measured
}

func (c crowd) services() (n int) {
	for _, g := range c.groups {
		n += g.services
	}
	return n
}

func (c crowd) endpoints() (n int) {
	for _, g := range c.groups {
		n += g.services * g.endpoints
	}
	return n
}

// mostInSlice is how many endpoints Kubernetes puts into one slice.
const mostInSlice = 100

// slices is how many EndpointSlices there are.
func (c crowd) slices() (n int) {
	for _, g := range c.groups {
		n += g.services * ((g.endpoints + mostInSlice - 1) / mostInSlice)
	}
	return n
}

// beside is the mean number of endpoints in the slice that an endpoint drawn at random is in.
func (c crowd) beside() float64 {
	sum := 0
	for _, g := range c.groups {
		full, rest := g.endpoints/mostInSlice, g.endpoints%mostInSlice
		sum += g.services * (full*mostInSlice*mostInSlice + rest*rest)
	}
	return float64(sum) / float64(c.endpoints())
}

// scaleWorld is a world of the size of a large cluster, with objects as large as they are there. It has no controllers: what changes is what is written here.
type scaleWorld struct {
	*world
	crowd
	nodes  []*corev1.Node
	leases []*coordinationv1.Lease
	own    []*corev1.Pod // of the node that is measured
	other  *corev1.Pod
	// changing are Services with a slice of as many endpoints.
	changing map[int]*virtual
}

// leased is how many nodes have a lease: as many as are renewed.
const leased = 100

func (s *suite) newScaleWorld(ctx context.Context, c crowd) (_ *scaleWorld, err error) {
	progress("making %d Services with %d endpoints in %d slices, and %d Nodes", c.services(), c.endpoints(), c.slices(), c.nodes)
	base, err := newWorld(ctx, s.programs, s.dir+"/scale", "--controllers=false")
	if err != nil {
		return nil, err
	}
	w := &scaleWorld{world: base, crowd: c, nodes: make([]*corev1.Node, c.nodes), leases: make([]*coordinationv1.Lease, min(leased, c.nodes)),
		own: make([]*corev1.Pod, c.pods), changing: map[int]*virtual{}}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if err := w.register(ctx); err != nil {
		return nil, err
	}
	return w, w.fill(ctx)
}

func (w *scaleWorld) fill(ctx context.Context) error {
	work, bounded := errgroup.WithContext(ctx)
	work.SetLimit(seeders)
	number := 0
	for _, g := range w.groups {
		for range g.services {
			name := fmt.Sprintf("service-%05d", number)
			number++
			work.Go(func() error { _, err := w.addLarge(bounded, name, g.endpoints); return err })
		}
	}
	for i := range w.nodes {
		work.Go(func() (err error) { w.nodes[i], err = w.addLargeNode(bounded, i); return err })
	}
	for i := range w.leases {
		work.Go(func() (err error) {
			w.leases[i], err = w.client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Create(bounded, &coordinationv1.Lease{
				ObjectMeta: metav1.ObjectMeta{Name: nodeName(i)},
				Spec:       coordinationv1.LeaseSpec{HolderIdentity: ptr.To(nodeName(i)), LeaseDurationSeconds: ptr.To[int32](40), RenewTime: ptr.To(metav1.NowMicro())},
			}, metav1.CreateOptions{})
			return err
		})
	}
	for i := range w.own {
		work.Go(func() (err error) { w.own[i], err = w.addPod(bounded, fairlead.name, i); return err })
	}
	if err := work.Wait(); err != nil {
		return err
	}
	for _, size := range sliceSizes {
		s, err := w.addLarge(ctx, fmt.Sprint("changing-", size), size)
		if err != nil {
			return err
		}
		w.changing[size] = &s
	}
	var err error
	w.other, err = w.addPod(ctx, remoteNode, 0)
	return err
}

// labelsOf are the labels that a chart gives what belongs to an application.
func labelsOf(name string) map[string]string {
	return map[string]string{
		"app.kubernetes.io/name": name, "app.kubernetes.io/instance": name + "-production", "app.kubernetes.io/version": "1.27.3",
		"app.kubernetes.io/component": "server", "app.kubernetes.io/managed-by": "Helm", "helm.sh/chart": name + "-4.11.0",
	}
}

// addLarge makes a Service and its slices, as a chart and the controllers of Kubernetes make them. It has no selector, so that no controller does.
func (w *scaleWorld) addLarge(ctx context.Context, name string, endpoints int) (v virtual, err error) {
	service, err := w.client.CoreV1().Services(metav1.NamespaceDefault).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labelsOf(name), Annotations: map[string]string{
			"meta.helm.sh/release-name": name + "-production", "meta.helm.sh/release-namespace": metav1.NamespaceDefault}},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: servicePort}}},
	}, metav1.CreateOptions{FieldManager: "helm"})
	if err != nil {
		return v, fmt.Errorf("create service %s: %w", name, err)
	}
	vip, err := netip.ParseAddr(service.Spec.ClusterIP)
	if err != nil {
		return v, fmt.Errorf("read address of service %s: %w", name, err)
	}
	v = virtual{name: name, vip: netip.AddrPortFrom(vip, servicePort)}
	for i := 0; endpoints > 0; i++ {
		n := min(endpoints, mostInSlice)
		endpoints -= n
		if v.slice, err = w.client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Create(ctx, w.largeSlice(service, i, n),
			metav1.CreateOptions{FieldManager: "kube-controller-manager"}); err != nil {
			return v, fmt.Errorf("create slice %d of service %s: %w", i, name, err)
		}
	}
	return v, nil
}

func (w *scaleWorld) largeSlice(of *corev1.Service, i, endpoints int) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("%s-%05d", of.Name, i), GenerateName: of.Name + "-", Labels: labelsOf(of.Name),
			Annotations:     map[string]string{corev1.EndpointsLastChangeTriggerTime: time.Now().UTC().Format(time.RFC3339Nano)},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(of, corev1.SchemeGroupVersion.WithKind("Service"))},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("http"), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To[int32](targetPort)}},
	}
	slice.Labels[discoveryv1.LabelServiceName] = of.Name
	slice.Labels[discoveryv1.LabelManagedBy] = "endpointslice-controller.k8s.io"
	for range endpoints {
		a := w.newEndpoint()
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{a.String()},
			Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true), Serving: ptr.To(true), Terminating: ptr.To(false)},
			NodeName:   ptr.To(nodeName(int(a.As4()[3]) * max(w.crowd.nodes/256, 1))),
			Zone:       ptr.To(zoneOf(int(a.As4()[3]))),
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: metav1.NamespaceDefault,
				Name: fmt.Sprintf("%s-%s-%s", of.Name, digest(of.Name, 10), digest(a.String(), 5)), UID: uuid.NewUUID()},
		})
	}
	return slice
}

// nodeName is what the nodes of a large provider are called.
func nodeName(i int) string {
	return fmt.Sprintf("ip-10-%d-%d-%d.eu-central-1.compute.internal", 16+i>>14, i>>6&255, i&63+10)
}

func zoneOf(i int) string { return "eu-central-1" + string(rune('a'+i%3)) }

// digest is n digits, at most 64, that look random, the same for the same text.
func digest(text string, n int) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])[:n]
}

// nodeImages is how many images a Node's status names here; a kubelet names up to 50.
const nodeImages = 30

// addLargeNode makes a Node by the writes that make one: the kubelet's, the controllers' and the kubelet's of its status.
func (w *scaleWorld) addLargeNode(ctx context.Context, i int) (*corev1.Node, error) {
	nodes := w.client.CoreV1().Nodes()
	name := nodeName(i)
	made, err := nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name,
		Labels: map[string]string{
			corev1.LabelHostname: name, corev1.LabelTopologyZone: zoneOf(i), corev1.LabelTopologyRegion: "eu-central-1", corev1.LabelArchStable: "amd64",
			corev1.LabelOSStable: "linux", corev1.LabelInstanceTypeStable: "m6i.2xlarge", "beta.kubernetes.io/arch": "amd64", "beta.kubernetes.io/os": "linux",
			"node.example.com/pool": "general", "node.example.com/capacity": "on-demand",
		},
		Annotations: map[string]string{"volumes.kubernetes.io/controller-managed-attach-detach": "true",
			"csi.volume.kubernetes.io/nodeid": fmt.Sprintf(`{"csi.example.com":"i-%s"}`, digest(name, 17))},
	}}, metav1.CreateOptions{FieldManager: "kubelet"})
	if err != nil {
		return nil, fmt.Errorf("create node %s: %w", name, err)
	}
	made.Annotations["node.alpha.kubernetes.io/ttl"] = "300"
	cidr := fmt.Sprintf("100.%d.%d.0/24", 64+i>>8, i&255)
	made.Spec.PodCIDR, made.Spec.PodCIDRs = cidr, []string{cidr}
	made.Spec.ProviderID = fmt.Sprintf("aws:///%s/i-%s", zoneOf(i), digest(name, 17))
	if made, err = nodes.Update(ctx, made, metav1.UpdateOptions{FieldManager: "kube-controller-manager"}); err != nil {
		return nil, fmt.Errorf("update node %s: %w", name, err)
	}
	made.Status = nodeStatus(i)
	if made, err = nodes.UpdateStatus(ctx, made, metav1.UpdateOptions{FieldManager: "kubelet"}); err != nil {
		return nil, fmt.Errorf("update status of node %s: %w", name, err)
	}
	return made, nil
}

func nodeStatus(i int) corev1.NodeStatus {
	amounts := func(cpu, memory string) corev1.ResourceList {
		return corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory), corev1.ResourcePods: resource.MustParse("110"),
			corev1.ResourceEphemeralStorage: resource.MustParse("83873772Ki"), "hugepages-1Gi": resource.MustParse("0"), "hugepages-2Mi": resource.MustParse("0"),
		}
	}
	now := metav1.Now()
	condition := func(of corev1.NodeConditionType, status corev1.ConditionStatus, reason, message string) corev1.NodeCondition {
		return corev1.NodeCondition{Type: of, Status: status, Reason: reason, Message: message, LastHeartbeatTime: now, LastTransitionTime: now}
	}
	s := corev1.NodeStatus{
		Capacity: amounts("8", "32408532Ki"), Allocatable: amounts("7910m", "31391700Ki"),
		Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("172.20.%d.%d", i/250, i%250+1)},
			{Type: corev1.NodeInternalDNS, Address: nodeName(i)}, {Type: corev1.NodeHostName, Address: nodeName(i)},
		},
		Conditions: []corev1.NodeCondition{
			condition(corev1.NodeMemoryPressure, corev1.ConditionFalse, "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
			condition(corev1.NodeDiskPressure, corev1.ConditionFalse, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
			condition(corev1.NodePIDPressure, corev1.ConditionFalse, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
			condition(corev1.NodeReady, corev1.ConditionTrue, "KubeletReady", "kubelet is posting ready status"),
		},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: 10250}},
		NodeInfo: corev1.NodeSystemInfo{
			MachineID: digest(nodeName(i), 32), SystemUUID: string(uuid.NewUUID()), BootID: string(uuid.NewUUID()), KernelVersion: "6.12.48+deb13-cloud-amd64",
			OSImage: "Debian GNU/Linux 13 (trixie)", ContainerRuntimeVersion: "containerd://2.1.4", KubeletVersion: "v1.37.2", OperatingSystem: "linux", Architecture: "amd64",
		},
	}
	for n := range nodeImages {
		image := fmt.Sprintf("registry.example.com/team-%02d/application-%03d", n%12, (i*7+n*13)%400)
		s.Images = append(s.Images, corev1.ContainerImage{Names: []string{image + "@sha256:" + digest(image, 64), image + ":v1.27.3"}, SizeBytes: int64(40_000_000 + n*7_654_321)})
	}
	return s
}

// addPod makes a pod that runs.
func (w *scaleWorld) addPod(ctx context.Context, node string, i int) (*corev1.Pod, error) {
	name := fmt.Sprintf("application-%s-%02d", node, i)
	made, err := w.client.CoreV1().Pods(metav1.NamespaceDefault).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labelsOf(name)},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{
			Name: "server", Image: "registry.example.com/team-01/application:v1.27.3", Command: []string{"/server", "--listen", ":8080"},
			Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: targetPort}},
			Env:   []corev1.EnvVar{{Name: "ENVIRONMENT", Value: "production"}, {Name: "LOG_LEVEL", Value: "info"}},
		}}},
	}, metav1.CreateOptions{FieldManager: "kube-controller-manager"})
	if err != nil {
		return nil, fmt.Errorf("create pod %s: %w", name, err)
	}
	a := w.newEndpoint().String()
	now := metav1.Now()
	made.Status = corev1.PodStatus{Phase: corev1.PodRunning, HostIP: nodeAddr(fairlead.number), PodIP: a, PodIPs: []corev1.PodIP{{IP: a}}, StartTime: &now}
	for _, c := range []corev1.PodConditionType{corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled} {
		made.Status.Conditions = append(made.Status.Conditions, corev1.PodCondition{Type: c, Status: corev1.ConditionTrue, LastTransitionTime: now})
	}
	if made, err = w.client.CoreV1().Pods(metav1.NamespaceDefault).UpdateStatus(ctx, made, metav1.UpdateOptions{FieldManager: "kubelet"}); err != nil {
		return nil, fmt.Errorf("update status of pod %s: %w", name, err)
	}
	return made, nil
}

// beat is what a kubelet writes of a node when nothing has changed: the same status, with another time.
func (w *scaleWorld) beat(ctx context.Context, i int) (err error) {
	n := w.nodes[i%len(w.nodes)].DeepCopy()
	for c := range n.Status.Conditions {
		n.Status.Conditions[c].LastHeartbeatTime = metav1.NewTime(n.Status.Conditions[c].LastHeartbeatTime.Add(time.Second))
	}
	if n, err = w.client.CoreV1().Nodes().UpdateStatus(ctx, n, metav1.UpdateOptions{FieldManager: "kubelet"}); err != nil {
		return fmt.Errorf("update status of a node: %w", err)
	}
	w.nodes[i%len(w.nodes)] = n
	return nil
}

// renew is what a kubelet writes every ten seconds.
func (w *scaleWorld) renew(ctx context.Context, i int) error {
	i %= len(w.leases)
	l := w.leases[i].DeepCopy()
	l.Spec.RenewTime = ptr.To(metav1.NowMicro())
	l, err := w.client.CoordinationV1().Leases(l.Namespace).Update(ctx, l, metav1.UpdateOptions{FieldManager: "kubelet"})
	if err != nil {
		return fmt.Errorf("renew a lease: %w", err)
	}
	w.leases[i] = l
	return nil
}

// turn makes a pod ready, or unready.
func (w *scaleWorld) turn(ctx context.Context, p **corev1.Pod) error {
	changed := (*p).DeepCopy()
	for i := range changed.Status.Conditions {
		if c := &changed.Status.Conditions[i]; c.Type == corev1.PodReady {
			c.Status = map[corev1.ConditionStatus]corev1.ConditionStatus{corev1.ConditionTrue: corev1.ConditionFalse, corev1.ConditionFalse: corev1.ConditionTrue}[c.Status]
		}
	}
	stored, err := w.client.CoreV1().Pods(changed.Namespace).UpdateStatus(ctx, changed, metav1.UpdateOptions{FieldManager: "kubelet"})
	if err != nil {
		return fmt.Errorf("update status of a pod: %w", err)
	}
	*p = stored
	return nil
}

// drop deletes a Service and its slice, as their controllers do.
func (w *scaleWorld) drop(ctx context.Context, v virtual) error {
	if err := w.client.CoreV1().Services(metav1.NamespaceDefault).Delete(ctx, v.name, metav1.DeleteOptions{}); err != nil {
		return fmt.Errorf("delete service %s: %w", v.name, err)
	}
	own := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: ptr.To(types.UID(v.slice.UID))}}
	if err := w.client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Delete(ctx, v.slice.Name, own); err != nil {
		return fmt.Errorf("delete slice %s: %w", v.slice.Name, err)
	}
	return nil
}
