// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package printers

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// tables are the convertors of the resources that have their own.
var tables = func() map[schema.GroupResource]convertor {
	m := map[schema.GroupResource]convertor{}
	for _, c := range []convertor{
		{corev1.Resource("pods"), podColumns, podRow},
		table(corev1.Resource("services"), serviceColumns, serviceCells),
		table(corev1.Resource("nodes"), nodeColumns, nodeCells),
		table(corev1.Resource("namespaces"), namespaceColumns, namespaceCells),
		table(corev1.Resource("configmaps"), configMapColumns, configMapCells),
		table(corev1.Resource("events"), eventColumns, eventCells),
		table(discoveryv1.Resource("endpointslices"), endpointSliceColumns, endpointSliceCells),
		table(coordinationv1.Resource("leases"), leaseColumns, leaseCells),
		table(networkingv1.Resource("servicecidrs"), serviceCIDRColumns, serviceCIDRCells),
		table(networkingv1.Resource("ipaddresses"), ipAddressColumns, ipAddressCells),
		table(appsv1.Resource("deployments"), deploymentColumns, deploymentCells),
		table(appsv1.Resource("replicasets"), replicaSetColumns, replicaSetCells),
	} {
		m[c.resource] = c
	}
	return m
}()

var serviceColumns = []metav1.TableColumnDefinition{
	nameColumn,
	column("Type", corev1.ServiceSpec{}.SwaggerDoc()["type"]),
	column("Cluster-IP", corev1.ServiceSpec{}.SwaggerDoc()["clusterIP"]),
	column("External-IP", corev1.ServiceSpec{}.SwaggerDoc()["externalIPs"]),
	column("Port(s)", corev1.ServiceSpec{}.SwaggerDoc()["ports"]),
	ageColumn,
	wide(column("Selector", corev1.ServiceSpec{}.SwaggerDoc()["selector"])),
}

func serviceCells(s *corev1.Service) []any {
	var ports []string
	for _, port := range s.Spec.Ports {
		text := strconv.Itoa(int(port.Port))
		if port.NodePort > 0 {
			text += ":" + strconv.Itoa(int(port.NodePort))
		}
		ports = append(ports, text+"/"+string(port.Protocol))
	}
	ip := s.Spec.ClusterIP
	if len(s.Spec.ClusterIPs) > 0 {
		ip = s.Spec.ClusterIPs[0]
	}
	return []any{
		s.Name, string(s.Spec.Type), or(ip, "<none>"), externalIP(s), or(strings.Join(ports, ","), "<none>"),
		since(s.CreationTimestamp), labels.FormatLabels(s.Spec.Selector),
	}
}

// externalIP is how the Service is reached from outside.
func externalIP(s *corev1.Service) string {
	var from []string
	switch s.Spec.Type {
	case corev1.ServiceTypeExternalName:
		return s.Spec.ExternalName
	case corev1.ServiceTypeLoadBalancer:
		for _, ingress := range s.Status.LoadBalancer.Ingress {
			from = append(from, or(ingress.IP, ingress.Hostname))
		}
		slices.Sort(from)
		from = append(slices.Compact(from), s.Spec.ExternalIPs...)
		return or(strings.Join(from, ","), "<pending>")
	case corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort:
		return or(strings.Join(s.Spec.ExternalIPs, ","), "<none>")
	}
	return "<unknown>"
}

var endpointSliceColumns = []metav1.TableColumnDefinition{
	nameColumn,
	column("AddressType", discoveryv1.EndpointSlice{}.SwaggerDoc()["addressType"]),
	column("Ports", discoveryv1.EndpointSlice{}.SwaggerDoc()["ports"]),
	column("Endpoints", discoveryv1.EndpointSlice{}.SwaggerDoc()["endpoints"]),
	ageColumn,
}

func endpointSliceCells(s *discoveryv1.EndpointSlice) []any {
	var ports, addresses []string
	for _, port := range s.Ports {
		switch {
		case port.Port != nil:
			ports = append(ports, strconv.Itoa(int(*port.Port)))
		case port.Name != nil:
			ports = append(ports, *port.Name)
		default:
			ports = append(ports, "*")
		}
	}
	for _, e := range s.Endpoints {
		addresses = append(addresses, e.Addresses...)
	}
	return []any{s.Name, string(s.AddressType), firstThree(ports), firstThree(addresses), since(s.CreationTimestamp)}
}

// firstThree is the beginning of a list that may be long.
func firstThree(list []string) string {
	const most = 3
	if len(list) > most {
		return fmt.Sprintf("%s + %d more...", strings.Join(list[:most], ","), len(list)-most)
	}
	return or(strings.Join(list, ","), "<unset>")
}

var nodeColumns = []metav1.TableColumnDefinition{
	nameColumn,
	column("Status", "The status of the node"),
	column("Roles", "The roles of the node"),
	ageColumn,
	column("Version", corev1.NodeSystemInfo{}.SwaggerDoc()["kubeletVersion"]),
	wide(column("Internal-IP", corev1.NodeStatus{}.SwaggerDoc()["addresses"])),
	wide(column("External-IP", corev1.NodeStatus{}.SwaggerDoc()["addresses"])),
	wide(column("OS-Image", corev1.NodeSystemInfo{}.SwaggerDoc()["osImage"])),
	wide(column("Kernel-Version", corev1.NodeSystemInfo{}.SwaggerDoc()["kernelVersion"])),
	wide(column("Container-Runtime", corev1.NodeSystemInfo{}.SwaggerDoc()["containerRuntimeVersion"])),
}

func nodeCells(n *corev1.Node) []any {
	info := &n.Status.NodeInfo
	return []any{
		n.Name, nodeStatus(n), or(strings.Join(nodeRoles(n), ","), "<none>"), since(n.CreationTimestamp), info.KubeletVersion,
		nodeAddress(n, corev1.NodeInternalIP), nodeAddress(n, corev1.NodeExternalIP),
		or(info.OSImage, "<unknown>"), or(info.KernelVersion, "<unknown>"), or(info.ContainerRuntimeVersion, "<unknown>"),
	}
}

func nodeStatus(n *corev1.Node) string {
	status := "Unknown"
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			status = "NotReady"
			if c.Status == corev1.ConditionTrue {
				status = "Ready"
			}
		}
	}
	if n.Spec.Unschedulable {
		status += ",SchedulingDisabled"
	}
	return status
}

// nodeRoles are in the names of labels, or in the value of one.
func nodeRoles(n *corev1.Node) []string {
	var roles []string
	for key, value := range n.Labels {
		if role, ok := strings.CutPrefix(key, "node-role.kubernetes.io/"); ok && role != "" {
			roles = append(roles, role)
		} else if key == "kubernetes.io/role" && value != "" {
			roles = append(roles, value)
		}
	}
	slices.Sort(roles)
	return slices.Compact(roles)
}

func nodeAddress(n *corev1.Node, t corev1.NodeAddressType) string {
	for _, address := range n.Status.Addresses {
		if address.Type == t {
			return address.Address
		}
	}
	return "<none>"
}

var namespaceColumns = []metav1.TableColumnDefinition{
	nameColumn, column("Status", "The status of the namespace"), ageColumn,
}

func namespaceCells(n *corev1.Namespace) []any {
	return []any{n.Name, string(n.Status.Phase), since(n.CreationTimestamp)}
}

var configMapColumns = []metav1.TableColumnDefinition{
	nameColumn, number("Data", corev1.ConfigMap{}.SwaggerDoc()["data"]), ageColumn,
}

func configMapCells(m *corev1.ConfigMap) []any {
	return []any{m.Name, int64(len(m.Data) + len(m.BinaryData)), since(m.CreationTimestamp)}
}

var eventColumns = []metav1.TableColumnDefinition{
	column("Last Seen", corev1.Event{}.SwaggerDoc()["lastTimestamp"]),
	column("Type", corev1.Event{}.SwaggerDoc()["type"]),
	column("Reason", corev1.Event{}.SwaggerDoc()["reason"]),
	column("Object", corev1.Event{}.SwaggerDoc()["involvedObject"]),
	wide(column("Subobject", corev1.ObjectReference{}.SwaggerDoc()["fieldPath"])),
	wide(column("Source", corev1.Event{}.SwaggerDoc()["source"])),
	column("Message", corev1.Event{}.SwaggerDoc()["message"]),
	wide(column("First Seen", corev1.Event{}.SwaggerDoc()["firstTimestamp"])),
	wide(number("Count", corev1.Event{}.SwaggerDoc()["count"])),
	wide(nameColumn),
}

func eventCells(e *corev1.Event) []any {
	// Recorders of the newer kind fill in other fields.
	first := since(e.FirstTimestamp)
	if e.FirstTimestamp.IsZero() {
		first = sinceMicro(e.EventTime)
	}
	last := since(e.LastTimestamp)
	if e.LastTimestamp.IsZero() {
		last = first
	}
	count := e.Count
	if e.Series != nil {
		last, count = sinceMicro(e.Series.LastObservedTime), e.Series.Count
	} else if count == 0 {
		count = 1
	}
	object := strings.ToLower(e.InvolvedObject.Kind)
	if e.InvolvedObject.Name != "" {
		object += "/" + e.InvolvedObject.Name
	}
	source := or(e.Source.Component, e.ReportingController)
	if host := or(e.Source.Host, e.ReportingInstance); host != "" {
		source += ", " + host
	}
	return []any{
		last, e.Type, e.Reason, object, e.InvolvedObject.FieldPath, source, strings.TrimSpace(e.Message),
		first, int64(count), e.Name,
	}
}

var leaseColumns = []metav1.TableColumnDefinition{
	nameColumn, column("Holder", coordinationv1.LeaseSpec{}.SwaggerDoc()["holderIdentity"]), ageColumn,
}

func leaseCells(l *coordinationv1.Lease) []any {
	holder := ""
	if l.Spec.HolderIdentity != nil {
		holder = *l.Spec.HolderIdentity
	}
	return []any{l.Name, holder, since(l.CreationTimestamp)}
}

var serviceCIDRColumns = []metav1.TableColumnDefinition{
	nameColumn, column("CIDRs", networkingv1.ServiceCIDRSpec{}.SwaggerDoc()["cidrs"]), ageColumn,
}

func serviceCIDRCells(c *networkingv1.ServiceCIDR) []any {
	return []any{c.Name, strings.Join(c.Spec.CIDRs, ","), since(c.CreationTimestamp)}
}

var ipAddressColumns = []metav1.TableColumnDefinition{
	nameColumn, column("ParentRef", networkingv1.IPAddressSpec{}.SwaggerDoc()["parentRef"]), ageColumn,
}

func ipAddressCells(a *networkingv1.IPAddress) []any {
	parent := "<none>"
	if ref := a.Spec.ParentRef; ref != nil {
		parent = strings.ToLower(schema.GroupResource{Group: ref.Group, Resource: ref.Resource}.String())
		if ref.Namespace != "" {
			parent += "/" + ref.Namespace
		}
		parent += "/" + ref.Name
	}
	return []any{a.Name, parent, since(a.CreationTimestamp)}
}

var deploymentColumns = []metav1.TableColumnDefinition{
	nameColumn,
	column("Ready", "Number of the pod with ready state"),
	number("Up-to-date", appsv1.DeploymentStatus{}.SwaggerDoc()["updatedReplicas"]),
	number("Available", appsv1.DeploymentStatus{}.SwaggerDoc()["availableReplicas"]),
	ageColumn,
	wide(column("Containers", "Names of each container in the template.")),
	wide(column("Images", "Images referenced by each container in the template.")),
	wide(column("Selector", appsv1.DeploymentSpec{}.SwaggerDoc()["selector"])),
}

func deploymentCells(d *appsv1.Deployment) []any {
	names, images := containers(&d.Spec.Template.Spec)
	return []any{
		d.Name, fmt.Sprintf("%d/%d", d.Status.ReadyReplicas, replicas(d.Spec.Replicas)),
		int64(d.Status.UpdatedReplicas), int64(d.Status.AvailableReplicas), since(d.CreationTimestamp),
		names, images, metav1.FormatLabelSelector(d.Spec.Selector),
	}
}

var replicaSetColumns = []metav1.TableColumnDefinition{
	nameColumn,
	number("Desired", appsv1.ReplicaSetSpec{}.SwaggerDoc()["replicas"]),
	number("Current", appsv1.ReplicaSetStatus{}.SwaggerDoc()["replicas"]),
	number("Ready", appsv1.ReplicaSetStatus{}.SwaggerDoc()["readyReplicas"]),
	ageColumn,
	wide(column("Containers", "Names of each container in the template.")),
	wide(column("Images", "Images referenced by each container in the template.")),
	wide(column("Selector", appsv1.ReplicaSetSpec{}.SwaggerDoc()["selector"])),
}

func replicaSetCells(r *appsv1.ReplicaSet) []any {
	names, images := containers(&r.Spec.Template.Spec)
	return []any{
		r.Name, int64(replicas(r.Spec.Replicas)), int64(r.Status.Replicas), int64(r.Status.ReadyReplicas),
		since(r.CreationTimestamp), names, images, metav1.FormatLabelSelector(r.Spec.Selector),
	}
}

// replicas is how many are wanted; one when nothing is said.
func replicas(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

// containers are the names and images of a template's containers.
func containers(s *corev1.PodSpec) (names, images string) {
	var n, i []string
	for _, c := range s.Containers {
		n = append(n, c.Name)
		i = append(i, c.Image)
	}
	return strings.Join(n, ","), strings.Join(i, ",")
}
