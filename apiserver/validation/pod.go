// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package validation

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Limits of a pod's resolv.conf, as resolvers have them.
const (
	maxNameservers    = 3
	maxSearchPaths    = 32
	maxSearchListSize = 2048
)

// Pod checks a new Pod.
func Pod(p *corev1.Pod) field.ErrorList {
	errs := created(&p.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	if len(p.Spec.EphemeralContainers) > 0 {
		errs = append(errs, field.Forbidden(specPath.Child("ephemeralContainers"), "cannot be set on create"))
	}
	return append(errs, podSpec(&p.Spec, specPath)...)
}

// PodUpdate checks a change of a Pod: of its spec little but images and added
// tolerations may change.
func PodUpdate(p, old *corev1.Pod) field.ErrorList {
	errs := updated(&p.ObjectMeta, &old.ObjectMeta)
	more, sameContainers := containersUpdate(p.Spec.Containers, old.Spec.Containers, specPath.Child("containers"))
	errs = append(errs, more...)
	more, sameInit := containersUpdate(p.Spec.InitContainers, old.Spec.InitContainers, specPath.Child("initContainers"))
	errs = append(errs, more...)
	if !sameContainers || !sameInit {
		return errs
	}
	errs = append(errs, tolerations(p.Spec.Tolerations, specPath.Child("tolerations"))...)
	for _, was := range old.Spec.Tolerations {
		if !slices.ContainsFunc(p.Spec.Tolerations, func(t corev1.Toleration) bool { return sameToleration(t, was) }) {
			errs = append(errs, field.Forbidden(specPath.Child("tolerations"), "existing toleration can not be modified except its tolerationSeconds"))
			break
		}
	}
	return append(errs, podSpecUpdate(&p.Spec, &old.Spec)...)
}

// sameToleration: but for how long.
func sameToleration(a, b corev1.Toleration) bool {
	return a.Key == b.Key && a.Operator == b.Operator && a.Value == b.Value && a.Effect == b.Effect
}

// containersUpdate checks the images, and says whether the rest of the spec
// can be compared.
func containersUpdate(list, old []corev1.Container, path *field.Path) (errs field.ErrorList, same bool) {
	if len(list) != len(old) {
		return field.ErrorList{field.Forbidden(path, "pod updates may not add or remove containers")}, false
	}
	for i := range list {
		image := list[i].Image
		if image == "" {
			errs = append(errs, field.Required(path.Index(i).Child("image"), ""))
		} else if strings.TrimSpace(image) != image {
			errs = append(errs, field.Invalid(path.Index(i).Child("image"), image, "must not have leading or trailing whitespace"))
		}
	}
	return errs, true
}

// podSpecUpdate compares everything but the fields that may change.
func podSpecUpdate(spec, old *corev1.PodSpec) field.ErrorList {
	kept := spec.DeepCopy()
	for i := range kept.Containers {
		kept.Containers[i].Image = old.Containers[i].Image
	}
	for i := range kept.InitContainers {
		kept.InitContainers[i].Image = old.InitContainers[i].Image
	}
	kept.Tolerations = old.Tolerations
	if grace := old.TerminationGracePeriodSeconds; grace != nil && *grace < 0 &&
		kept.TerminationGracePeriodSeconds != nil && *kept.TerminationGracePeriodSeconds == 1 {
		kept.TerminationGracePeriodSeconds = grace
	}
	if equality.Semantic.DeepEqual(kept, old) {
		return nil
	}
	return field.ErrorList{field.Forbidden(specPath, "pod updates may not change fields other than "+
		"`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,"+
		"`spec.tolerations` (only additions to existing tolerations),"+
		"`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n"+diff.Diff(old, kept))}
}

// PodStatusUpdate checks a change of a Pod's status.
func PodStatusUpdate(p, old *corev1.Pod) field.ErrorList {
	errs := updated(&p.ObjectMeta, &old.ObjectMeta)
	if p.Spec.NodeName != old.Spec.NodeName {
		errs = append(errs, field.Forbidden(statusPath.Child("nodeName"), "may not be changed directly"))
	}
	if name := p.Status.NominatedNodeName; name != old.Status.NominatedNodeName && name != "" {
		errs = append(errs, dnsSubdomain(name, statusPath.Child("nominatedNodeName"))...)
	}
	for i, condition := range p.Status.Conditions {
		if !slices.Contains([]corev1.PodConditionType{corev1.PodScheduled, corev1.PodReady, corev1.PodInitialized}, condition.Type) {
			errs = append(errs, qualifiedName(string(condition.Type), statusPath.Child("conditions").Index(i).Child("type"))...)
		}
	}
	policy := old.Spec.RestartPolicy
	errs = append(errs, terminatedStays(p.Status.ContainerStatuses, old.Status.ContainerStatuses, policy, nil, statusPath.Child("containerStatuses"))...)
	errs = append(errs, terminatedStays(p.Status.InitContainerStatuses, old.Status.InitContainerStatuses, policy, old.Spec.InitContainers, statusPath.Child("initContainerStatuses"))...)
	return append(errs, podAddresses(&p.Status)...)
}

// terminatedStays: a container that is not to be restarted does not come back.
func terminatedStays(list, old []corev1.ContainerStatus, policy corev1.RestartPolicy, specs []corev1.Container, path *field.Path) (errs field.ErrorList) {
	if policy == corev1.RestartPolicyAlways {
		return nil
	}
	for i := range old {
		ended := old[i].State.Terminated
		if ended == nil || ended.ExitCode != 0 && policy == corev1.RestartPolicyOnFailure {
			continue
		}
		if slices.ContainsFunc(specs, func(c corev1.Container) bool { return c.Name == old[i].Name && restartable(&c) }) {
			continue
		}
		for j := range list {
			if list[j].Name == old[i].Name && list[j].State.Terminated == nil {
				errs = append(errs, field.Forbidden(path.Index(j).Child("state"), "may not be transitioned to non-terminated state"))
			}
		}
	}
	return errs
}

// podAddresses checks the pod's and its node's, at most one of each family.
func podAddresses(s *corev1.PodStatus) (errs field.ErrorList) {
	check := func(ips []string, first, list string) {
		path := statusPath.Child(list)
		for i, ip := range ips {
			errs = append(errs, ipAddress(ip, path.Index(i))...)
		}
		if len(ips) > 1 && (len(ips) > 2 || familyOf(ips[0]) == familyOf(ips[1])) {
			errs = append(errs, field.Invalid(path, ips, "may specify no more than one IP for each IP family"))
		}
		if len(ips) > 0 && first != ips[0] {
			errs = append(errs, field.Invalid(path.Index(0), ips[0], fmt.Sprintf("must be equal to `%s`", strings.TrimSuffix(list, "s"))))
		}
	}
	var pod, host []string
	for _, ip := range s.PodIPs {
		pod = append(pod, ip.IP)
	}
	for _, ip := range s.HostIPs {
		host = append(host, ip.IP)
	}
	check(pod, s.PodIP, "podIPs")
	check(host, s.HostIP, "hostIPs")
	return errs
}

// Binding checks the assignment of a Pod to a Node.
func Binding(b *corev1.Binding) (errs field.ErrorList) {
	path := field.NewPath("target")
	if kind := b.Target.Kind; kind != "" && kind != "Node" {
		errs = append(errs, field.NotSupported(path.Child("kind"), kind, []string{"Node", "<empty>"}))
	}
	if b.Target.Name == "" {
		errs = append(errs, field.Required(path.Child("name"), ""))
	}
	return errs
}

// podSpec checks what pods and templates share.
func podSpec(s *corev1.PodSpec, path *field.Path) field.ErrorList {
	grace := int64(corev1.DefaultTerminationGracePeriodSeconds)
	if s.TerminationGracePeriodSeconds != nil {
		grace = *s.TerminationGracePeriodSeconds
	}
	errs := containers(s.Containers, grace, path.Child("containers"))
	errs = append(errs, initContainers(s.InitContainers, s.Containers, grace, path.Child("initContainers"))...)
	errs = append(errs, oneOf(s.RestartPolicy, path.Child("restartPolicy"),
		corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)...)
	errs = append(errs, nonNegative(s.TerminationGracePeriodSeconds, path.Child("terminationGracePeriodSeconds"))...)
	errs = append(errs, dns(s, path)...)
	errs = append(errs, placement(s, path)...)
	if s.Hostname != "" {
		errs = append(errs, dnsLabel(s.Hostname, path.Child("hostname"))...)
	}
	if s.Subdomain != "" {
		errs = append(errs, dnsLabel(s.Subdomain, path.Child("subdomain"))...)
	}
	for i, alias := range s.HostAliases {
		at := path.Child("hostAliases").Index(i)
		errs = append(errs, ipAddress(alias.IP, at.Child("ip"))...)
		for j, name := range alias.Hostnames {
			errs = append(errs, dnsSubdomain(name, at.Child("hostnames").Index(j))...)
		}
	}
	for i, gate := range s.ReadinessGates {
		errs = append(errs, qualifiedName(string(gate.ConditionType), path.Child("readinessGates").Index(i).Child("conditionType"))...)
	}
	for i, secret := range s.ImagePullSecrets {
		if secret.Name == "" {
			errs = append(errs, field.Required(path.Child("imagePullSecrets").Index(i).Child("name"), ""))
		}
	}
	if s.Resources != nil {
		errs = append(errs, resources(s.Resources, path.Child("resources"))...)
	}
	return append(errs, podRefusals(s, path)...)
}

// placement checks what the scheduler goes by.
func placement(s *corev1.PodSpec, path *field.Path) (errs field.ErrorList) {
	if s.NodeName != "" {
		errs = append(errs, dnsSubdomain(s.NodeName, path.Child("nodeName"))...)
	}
	if s.SchedulerName == "" {
		errs = append(errs, field.Required(path.Child("schedulerName"), ""))
	}
	errs = append(errs, metavalidation.ValidateLabels(s.NodeSelector, path.Child("nodeSelector"))...)
	errs = append(errs, tolerations(s.Tolerations, path.Child("tolerations"))...)
	if s.Affinity != nil {
		errs = append(errs, affinity(s.Affinity, path.Child("affinity"))...)
	}
	if len(s.TopologySpreadConstraints) > 0 {
		errs = append(errs, forbidden(path.Child("topologySpreadConstraints"), "pods are spread over the nodes; use nodeSelector or nodeName"))
	}
	if len(s.SchedulingGates) > 0 {
		errs = append(errs, forbidden(path.Child("schedulingGates"), "create the pod when it may start"))
	}
	if s.PriorityClassName != "" {
		errs = append(errs, forbidden(path.Child("priorityClassName"), "all pods are alike"))
	}
	if s.Priority != nil && *s.Priority != 0 {
		errs = append(errs, forbidden(path.Child("priority"), "all pods are alike"))
	}
	if s.PreemptionPolicy != nil {
		errs = append(errs, forbidden(path.Child("preemptionPolicy"), "all pods are alike"))
	}
	if s.SchedulingGroup != nil {
		errs = append(errs, forbidden(path.Child("schedulingGroup"), "pods are scheduled one by one"))
	}
	return errs
}

// affinity checks on which nodes a pod must run, and refuses what it would
// merely like, and which pods it wants to be with.
func affinity(a *corev1.Affinity, path *field.Path) (errs field.ErrorList) {
	const why = "pods are spread over the nodes; use requiredDuringSchedulingIgnoredDuringExecution of nodeAffinity, nodeSelector or nodeName"
	if a.PodAffinity != nil {
		errs = append(errs, forbidden(path.Child("podAffinity"), why))
	}
	if a.PodAntiAffinity != nil {
		errs = append(errs, forbidden(path.Child("podAntiAffinity"), why))
	}
	if a.NodeAffinity == nil {
		return errs
	}
	path = path.Child("nodeAffinity")
	if len(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution) > 0 {
		errs = append(errs, forbidden(path.Child("preferredDuringSchedulingIgnoredDuringExecution"), why))
	}
	required := a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	if required == nil {
		return errs
	}
	terms := path.Child("requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms")
	if len(required.NodeSelectorTerms) == 0 {
		errs = append(errs, field.Required(terms, "must have at least one node selector term"))
	}
	for i, term := range required.NodeSelectorTerms {
		for j := range term.MatchExpressions {
			errs = append(errs, nodeLabel(&term.MatchExpressions[j], terms.Index(i).Child("matchExpressions").Index(j))...)
		}
		for j := range term.MatchFields {
			errs = append(errs, nodeField(&term.MatchFields[j], terms.Index(i).Child("matchFields").Index(j))...)
		}
	}
	return errs
}

func nodeLabel(r *corev1.NodeSelectorRequirement, path *field.Path) (errs field.ErrorList) {
	values := path.Child("values")
	switch r.Operator {
	case corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn:
		if len(r.Values) == 0 {
			errs = append(errs, field.Required(values, "must be specified when `operator` is 'In' or 'NotIn'"))
		}
	case corev1.NodeSelectorOpExists, corev1.NodeSelectorOpDoesNotExist:
		if len(r.Values) > 0 {
			errs = append(errs, field.Forbidden(values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"))
		}
	case corev1.NodeSelectorOpGt, corev1.NodeSelectorOpLt:
		if len(r.Values) != 1 {
			errs = append(errs, field.Required(values, "must be specified single value when `operator` is 'Lt' or 'Gt'"))
		}
	default:
		errs = append(errs, field.Invalid(path.Child("operator"), r.Operator, "not a valid selector operator"))
	}
	errs = append(errs, metavalidation.ValidateLabelName(r.Key, path.Child("key"))...)
	for i, value := range r.Values {
		errs = append(errs, invalid(values.Index(i), value, validation.IsValidLabelValue(value))...)
	}
	return errs
}

// nodeField: the name is the one field that nodes are selected by.
func nodeField(r *corev1.NodeSelectorRequirement, path *field.Path) (errs field.ErrorList) {
	switch {
	case r.Operator != corev1.NodeSelectorOpIn && r.Operator != corev1.NodeSelectorOpNotIn:
		errs = append(errs, field.Invalid(path.Child("operator"), r.Operator, "not a valid selector operator"))
	case len(r.Values) != 1:
		errs = append(errs, field.Required(path.Child("values"), "must be only one value when `operator` is 'In' or 'NotIn' for node field selector"))
	}
	if r.Key != "metadata.name" {
		return append(errs, field.Invalid(path.Child("key"), r.Key, "not a valid field selector key"))
	}
	for i, value := range r.Values {
		errs = append(errs, dnsSubdomain(value, path.Child("values").Index(i))...)
	}
	return errs
}

func tolerations(list []corev1.Toleration, path *field.Path) (errs field.ErrorList) {
	for i, t := range list {
		at := path.Index(i)
		if t.Key != "" {
			errs = append(errs, metavalidation.ValidateLabelName(t.Key, at.Child("key"))...)
		} else if t.Operator != corev1.TolerationOpExists {
			errs = append(errs, field.Invalid(at.Child("operator"), t.Operator,
				"operator must be Exists when `key` is empty, which means \"match all values and all keys\""))
		}
		if t.TolerationSeconds != nil && t.Effect != corev1.TaintEffectNoExecute {
			errs = append(errs, field.Invalid(at.Child("effect"), t.Effect, "effect must be 'NoExecute' when `tolerationSeconds` is set"))
		}
		switch t.Operator {
		case corev1.TolerationOpEqual, "":
			errs = append(errs, invalid(at.Child("operator"), t.Value, validation.IsValidLabelValue(t.Value))...)
		case corev1.TolerationOpExists:
			if t.Value != "" {
				errs = append(errs, field.Invalid(at.Child("operator"), t, "value must be empty when `operator` is 'Exists'"))
			}
		default:
			errs = append(errs, field.NotSupported(at.Child("operator"), t.Operator, []corev1.TolerationOperator{corev1.TolerationOpEqual, corev1.TolerationOpExists}))
		}
		if t.Effect != "" {
			errs = append(errs, taintEffect(t.Effect, at.Child("effect"))...)
		}
	}
	return errs
}

// dns checks what the pod's resolv.conf is made of.
func dns(s *corev1.PodSpec, path *field.Path) field.ErrorList {
	errs := oneOf(s.DNSPolicy, path.Child("dnsPolicy"),
		corev1.DNSClusterFirst, corev1.DNSClusterFirstWithHostNet, corev1.DNSDefault, corev1.DNSNone)
	at, config := path.Child("dnsConfig"), s.DNSConfig
	if s.DNSPolicy == corev1.DNSNone && config == nil {
		return append(errs, field.Required(at, "must provide `dnsConfig` when `dnsPolicy` is None"))
	}
	if config == nil {
		return errs
	}
	servers, searches := at.Child("nameservers"), at.Child("searches")
	if s.DNSPolicy == corev1.DNSNone && len(config.Nameservers) == 0 {
		errs = append(errs, field.Required(servers, "must provide at least one DNS nameserver when `dnsPolicy` is None"))
	}
	if len(config.Nameservers) > maxNameservers {
		errs = append(errs, field.Invalid(servers, config.Nameservers, fmt.Sprintf("must not have more than %d nameservers", maxNameservers)))
	}
	for i, ip := range config.Nameservers {
		errs = append(errs, ipAddress(ip, servers.Index(i))...)
	}
	if len(config.Searches) > maxSearchPaths {
		errs = append(errs, field.Invalid(searches, config.Searches, fmt.Sprintf("must not have more than %d search paths", maxSearchPaths)))
	}
	if len(strings.Join(config.Searches, " ")) > maxSearchListSize {
		errs = append(errs, field.Invalid(searches, config.Searches, fmt.Sprintf("must not have more than %d characters (including spaces) in the search list", maxSearchListSize)))
	}
	for i, name := range config.Searches {
		// The root alone is a search path too.
		if name != "." {
			name = strings.TrimSuffix(name, ".")
			errs = append(errs, invalid(searches.Index(i), name, validation.IsDNS1123SubdomainWithUnderscore(name))...)
		}
	}
	for i, option := range config.Options {
		if option.Name == "" {
			errs = append(errs, field.Required(at.Child("options").Index(i), "must not be empty"))
		}
	}
	return errs
}

// podRefusals lists what a process pod does not have yet.
func podRefusals(s *corev1.PodSpec, path *field.Path) (errs field.ErrorList) {
	refuse := func(set bool, name, why string) {
		if set {
			errs = append(errs, forbidden(path.Child(name), why))
		}
	}
	for i := range s.Volumes {
		errs = append(errs, forbidden(path.Child("volumes").Index(i), "process pods have no volumes, they see the host's file system"))
	}
	refuse(s.HostNetwork, "hostNetwork", "every pod has its own network")
	refuse(s.HostPID, "hostPID", "every pod has its own processes")
	refuse(s.HostIPC, "hostIPC", "every pod has its own IPC")
	refuse(s.HostUsers != nil && !*s.HostUsers, "hostUsers", "process pods run with the rights of the node")
	if s.SecurityContext != nil {
		errs = append(errs, podSecurityContext(s.SecurityContext, path.Child("securityContext"))...)
	}
	refuse(s.ServiceAccountName != "" && s.ServiceAccountName != "default", "serviceAccountName", "there are no service accounts; leave it out")
	refuse(s.DeprecatedServiceAccount != "" && s.DeprecatedServiceAccount != "default", "serviceAccount", "there are no service accounts; leave it out")
	refuse(s.AutomountServiceAccountToken != nil && *s.AutomountServiceAccountToken, "automountServiceAccountToken", "there are no service accounts; leave it out")
	refuse(s.ActiveDeadlineSeconds != nil, "activeDeadlineSeconds", "a pod runs until it ends or is deleted")
	refuse(s.RuntimeClassName != nil, "runtimeClassName", "there is one way to run a process pod")
	refuse(len(s.Overhead) > 0, "overhead", "process pods have none")
	refuse(s.SetHostnameAsFQDN != nil && *s.SetHostnameAsFQDN, "setHostnameAsFQDN", "use hostname and subdomain")
	refuse(s.HostnameOverride != nil, "hostnameOverride", "use hostname and subdomain")
	refuse(s.OS != nil && s.OS.Name != corev1.Linux, "os", "process pods run on Linux")
	refuse(len(s.ResourceClaims) > 0, "resourceClaims", "there are no devices to claim")
	refuse(len(s.EvictionResponders) > 0, "evictionResponders", "pods are deleted, not evicted")
	return errs
}

// podSecurityContext checks what is followed of a pod's, and refuses the rest.
func podSecurityContext(c *corev1.PodSecurityContext, path *field.Path) field.ErrorList {
	errs := user(c.RunAsUser, c.RunAsGroup, path)
	for i, gid := range c.SupplementalGroups {
		errs = append(errs, invalid(path.Child("supplementalGroups").Index(i), gid, validation.IsValidGroupID(gid))...)
	}
	if c.FSGroup != nil {
		errs = append(errs, invalid(path.Child("fsGroup"), *c.FSGroup, validation.IsValidGroupID(*c.FSGroup))...)
	}
	rest := *c
	rest.RunAsUser, rest.RunAsGroup, rest.RunAsNonRoot, rest.SupplementalGroups, rest.FSGroup = nil, nil, nil, nil, nil
	if !equality.Semantic.DeepEqual(rest, corev1.PodSecurityContext{}) {
		errs = append(errs, forbidden(path, "of it, only runAsUser, runAsGroup, runAsNonRoot, supplementalGroups and fsGroup are; leave out the rest"))
	}
	return errs
}
