// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
)

// permissions are what a role allows, one by one.
func permissions(role *rbacv1.ClusterRole) (all []permission) {
	for _, r := range role.Rules {
		for _, g := range r.APIGroups {
			for _, resource := range r.Resources {
				for _, v := range r.Verbs {
					all = append(all, permission{g, resource, v})
				}
			}
		}
	}
	return all
}

// without is a role that allows everything but one thing.
func without(all []permission, gone permission) rbacv1.ClusterRole {
	role := rbacv1.ClusterRole{}
	role.Name = "fairlead"
	for _, p := range all {
		if p != gone {
			role.Rules = append(role.Rules, rbacv1.PolicyRule{APIGroups: []string{p.group}, Resources: []string{p.resource}, Verbs: []string{p.verb}})
		}
	}
	return role
}

// TestRole: with the role of the chart, an agent does everything it can and is refused nothing; and it uses all that the role allows. It runs against API servers
// that stream lists, and against those that do not.
func TestRole(t *testing.T) {
	o := rendered(t, values())
	c := startCluster(t, o.role)
	img := unpack(t)
	for _, r := range o.role.Rules {
		if len(r.ResourceNames)+len(r.NonResourceURLs) > 0 || slices.Contains(slices.Concat(r.APIGroups, r.Resources, r.Verbs), "*") {
			t.Fatalf("a rule that this test cannot take apart: %v", r)
		}
	}
	all := permissions(&o.role)
	for _, streams := range []bool{true, false} {
		c.policy.set(streams, o.role)
		c.forgetReady()
		k := c.container(img, o).start()
		k.mustGetReady(o)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		var unused []permission
		c.policy.wait(ctx, func(asked map[permission]bool) bool {
			unused = slices.DeleteFunc(slices.Clone(all), func(p permission) bool {
				_, ok := asked[p]
				return ok || p.verb == "list" && streams
			})
			return len(unused) == 0
		})
		cancel()
		k.stop()
		c.policy.mu.Lock()
		for _, p := range slices.SortedFunc(maps.Keys(c.policy.asked), func(a, b permission) int { return strings.Compare(a.String(), b.String()) }) {
			if !c.policy.asked[p] {
				t.Errorf("streams %t: the agent may not %s, and tried to", streams, p)
			}
		}
		c.policy.mu.Unlock()
		if len(unused) > 0 {
			t.Errorf("streams %t: the role allows to %v, which the agent does not do", streams, unused)
		}
	}
}

// TestRoleIsNeeded: each permission is needed. Without it the agent is refused, and what it then says or does not get done is named.
func TestRoleIsNeeded(t *testing.T) {
	o := rendered(t, values())
	c := startCluster(t, o.role)
	img := unpack(t)
	all := permissions(&o.role)
	for _, p := range all {
		t.Run(p.String(), func(t *testing.T) {
			c.policy.set(p.verb != "list", without(all, p))
			c.forgetReady()
			k := c.container(img, o)
			k.c = &cluster{t: t, node: c.node, dir: c.dir, pki: c.pki, admin: c.admin, policy: c.policy}
			k.start()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if !c.policy.wait(ctx, func(asked map[permission]bool) bool { allowed, ok := asked[p]; return ok && !allowed }) {
				t.Fatalf("the agent does not ask to %s", p)
			}
			resource, _, _ := strings.Cut(p.resource, "/")
			// What the API server says has the user, the verb and the resource, and comes into the log.
			want := fmt.Sprintf("cannot %s resource \\\"%s\\\"", p.verb, p.resource)
			if !k.out.wait(ctx, want) {
				t.Errorf("the agent does not say that it may not %s %s; want %q", p.verb, resource, want)
			}
			k.stop()
		})
	}
}
