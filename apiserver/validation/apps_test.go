// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package validation

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
)

const baseWorkload = `{"metadata":{"name":"orders","namespace":"shop"},"spec":{"selector":{"matchLabels":{"app":"orders"}},
	"template":{"metadata":{"labels":{"app":"orders"}},"spec":{"containers":[{"name":"c","image":"host"}]}}}}`

// What Deployments and ReplicaSets have in common.
var workloadRows = []row{
	{"valid", `{}`, nil},
	{"no replicas", `{"spec":{"replicas":0}}`, nil},
	{"selected by an expression", `{"spec":{"selector":{"matchLabels":null,"matchExpressions":[{"key":"app","operator":"In","values":["orders","x"]}]}}}`, nil},
	{"more labels", `{"spec":{"template":{"metadata":{"labels":{"version":"v1"},"annotations":{"a":"b"}}}}}`, nil},

	{"bad name", `{"metadata":{"name":"Orders"}}`, []string{`metadata.name: Invalid value: "Orders": ` + subdomainRule}},
	{"negative replicas", `{"spec":{"replicas":-1}}`, []string{`spec.replicas: Invalid value: -1: must be greater than or equal to 0`}},
	{"no selector", `{"spec":{"selector":null}}`, []string{`spec.selector: Required value`, "spec.template.metadata.labels: Invalid value: {\"app\":\"orders\"}: `selector` does not match template `labels`"}},
	{"empty selector", `{"spec":{"selector":{"matchLabels":null}}}`, []string{`spec.selector: Invalid value: {}: empty selector is invalid for deployment`}},
	{"selector of other pods", `{"spec":{"selector":{"matchLabels":{"app":"other"}}}}`, []string{"spec.template.metadata.labels: Invalid value: {\"app\":\"orders\"}: `selector` does not match template `labels`"}},
	{"no labels", `{"spec":{"template":{"metadata":null}}}`, []string{"spec.template.metadata.labels: Invalid value: null: `selector` does not match template `labels`"}},
	{"bad selector", `{"spec":{"selector":{"matchLabels":null,"matchExpressions":[{"key":"app","operator":"Like"}]}}}`, []string{`spec.selector.matchExpressions[0].operator: Invalid value: "Like": not a valid selector operator`}},
	{"expression without values", `{"spec":{"selector":{"matchExpressions":[{"key":"app","operator":"In"}]}}}`, []string{"spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"}},
	{"bad label", `{"spec":{"template":{"metadata":{"labels":{"x":"a b"}}}}}`, []string{`spec.template.labels: Invalid value: "a b": a valid label must be…`}},
	{"pods that end", `{"spec":{"template":{"spec":{"restartPolicy":"Never"}}}}`, []string{`spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"`}},
	{"pods of a bad policy", `{"spec":{"template":{"spec":{"restartPolicy":"x"}}}}`, []string{`spec.template.spec.restartPolicy: Unsupported value: "x": supported values: "Always", "Never", "OnFailure"`}},
	{"pods with a deadline", `{"spec":{"template":{"spec":{"activeDeadlineSeconds":1}}}}`, []string{`spec.template.spec.activeDeadlineSeconds: Forbidden: not supported yet by Fairlead: a pod runs until it ends or is deleted`}},
	{"pods without containers", `{"spec":{"template":{"spec":{"containers":null}}}}`, []string{`spec.template.spec.containers: Required value`}},
	{"pods with volumes", `{"spec":{"template":{"spec":{"volumes":[{"name":"a"}]}}}}`, []string{`spec.template.spec.volumes[0]: ` + noVolumes}},
	{"ephemeral containers", `{"spec":{"template":{"spec":{"ephemeralContainers":[{"name":"e"}]}}}}`, []string{`spec.template.spec.ephemeralContainers: Forbidden: ephemeral containers not allowed in pod template`}},
	{"negative time", `{"spec":{"minReadySeconds":-1}}`, []string{`spec.minReadySeconds: Invalid value: -1: must be greater than or equal to 0`}},
}

// What may and may not change in both.
var workloadChanges = []change{
	{"nothing", `{}`, `{}`, nil},
	{"replicas and template", `{}`, `{"spec":{"replicas":5,"template":{"metadata":{"labels":{"v":"2"}},"spec":{"containers":[{"name":"d","image":"host"}]}}}}`, nil},
	{"selector", `{}`, `{"spec":{"selector":{"matchLabels":{"app":"b"}},"template":{"metadata":{"labels":{"app":"b"}}}}}`, []string{`spec.selector: Invalid value: {"matchLabels":{"app":"b"}}: field is immutable`}},
	{"labels away", `{}`, `{"spec":{"template":{"metadata":{"labels":{"app":"b"}}}}}`, []string{"spec.template.metadata.labels: Invalid value: {\"app\":\"b\"}: `selector` does not match template `labels`"}},
	{"namespace", `{}`, `{"metadata":{"namespace":"b"}}`, []string{`metadata.namespace: Invalid value: "b": field is immutable`}},
}

func TestReplicaSet(t *testing.T) {
	creates(t, baseWorkload, ReplicaSet, workloadRows)
	updates(t, baseWorkload, ReplicaSetUpdate, workloadChanges)
}

func TestDeployment(t *testing.T) {
	creates(t, baseWorkload, Deployment, workloadRows)
	updates(t, baseWorkload, DeploymentUpdate, workloadChanges)
	creates(t, baseWorkload, Deployment, []row{
		{"recreate", `{"spec":{"strategy":{"type":"Recreate"}}}`, nil},
		{"numbers", `{"spec":{"strategy":{"rollingUpdate":{"maxSurge":0,"maxUnavailable":1}},"minReadySeconds":3,"revisionHistoryLimit":0,"paused":true}}`, nil},
		{"shares", `{"spec":{"strategy":{"rollingUpdate":{"maxSurge":"200%","maxUnavailable":"100%"}}}}`, nil},

		{"unknown strategy", `{"spec":{"strategy":{"type":"BlueGreen"}}}`, []string{`spec.strategy.type: Unsupported value: "BlueGreen": supported values: "Recreate", "RollingUpdate"`}},
		{"recreate with numbers", `{"spec":{"strategy":{"type":"Recreate","rollingUpdate":{"maxSurge":1}}}}`, []string{"spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"}},
		{"cannot move", `{"spec":{"strategy":{"rollingUpdate":{"maxSurge":0,"maxUnavailable":0}}}}`, []string{"spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"}},
		{"cannot move by shares", `{"spec":{"strategy":{"rollingUpdate":{"maxSurge":"0%","maxUnavailable":"0%"}}}}`, []string{"spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0"}},
		{"more than all unavailable", `{"spec":{"strategy":{"rollingUpdate":{"maxUnavailable":"101%"}}}}`, []string{`spec.strategy.rollingUpdate.maxUnavailable: Invalid value: "101%": must not be greater than 100%`}},
		{"negative", `{"spec":{"strategy":{"rollingUpdate":{"maxSurge":-1,"maxUnavailable":-2}}}}`, []string{
			`spec.strategy.rollingUpdate.maxSurge: Invalid value: -1: must be greater than or equal to 0`,
			`spec.strategy.rollingUpdate.maxUnavailable: Invalid value: -2: must be greater than or equal to 0`}},
		{"no share", `{"spec":{"strategy":{"rollingUpdate":{"maxSurge":"half"}}}}`, []string{`spec.strategy.rollingUpdate.maxSurge: Invalid value: "half": a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')`}},
		{"too large a share", `{"spec":{"strategy":{"rollingUpdate":{"maxSurge":"99999999999999999999%"}}}}`, []string{`spec.strategy.rollingUpdate.maxSurge: Invalid value: "99999999999999999999%": must be an integer or percentage (e.g '5%')`}},
		{"negative history", `{"spec":{"revisionHistoryLimit":-1}}`, []string{`spec.revisionHistoryLimit: Invalid value: -1: must be greater than or equal to 0`}},
		{"deadline before ready", `{"spec":{"minReadySeconds":600}}`, []string{`spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds`}},
		{"negative deadline", `{"spec":{"progressDeadlineSeconds":-1}}`, []string{`spec.progressDeadlineSeconds: Invalid value: -1: must be greater than or equal to 0`, `spec.progressDeadlineSeconds: Invalid value: -1: must be greater than minReadySeconds`}},
	})
	t.Run("strategy that nobody defaulted", func(t *testing.T) {
		d := object[appsv1.Deployment](t, baseWorkload)
		d.Spec.Strategy.RollingUpdate = nil
		check(t, Deployment(d), []string{`spec.strategy.rollingUpdate: Required value: this should be defaulted and never be nil`})
	})
}

func TestWorkloadStatus(t *testing.T) {
	updates(t, baseWorkload, DeploymentStatusUpdate, []change{
		{"rolling", `{}`, `{"status":{"observedGeneration":2,"replicas":4,"updatedReplicas":3,"readyReplicas":3,"availableReplicas":2,"unavailableReplicas":2,"terminatingReplicas":1,"collisionCount":1}}`, nil},
		{"too many", `{}`, `{"status":{"replicas":1,"updatedReplicas":2,"readyReplicas":2,"availableReplicas":3}}`, []string{
			`status.updatedReplicas: Invalid value: 2: cannot be greater than status.replicas`,
			`status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas`,
			`status.availableReplicas: Invalid value: 3: cannot be greater than status.replicas`,
			`status.availableReplicas: Invalid value: 3: cannot be greater than readyReplicas`}},
		{"negative", `{}`, `{"status":{"observedGeneration":-1,"unavailableReplicas":-2,"terminatingReplicas":-3}}`, []string{
			`status.observedGeneration: Invalid value: -1: must be greater than or equal to 0`,
			`status.unavailableReplicas: Invalid value: -2: must be greater than or equal to 0`,
			`status.terminatingReplicas: Invalid value: -3: must be greater than or equal to 0`}},
		{"collisions forgotten", `{"status":{"collisionCount":2}}`, `{"status":{"collisionCount":1}}`, []string{`status.collisionCount: Invalid value: 1: cannot be decremented`}},
	})
	updates(t, baseWorkload, ReplicaSetStatusUpdate, []change{
		{"growing", `{}`, `{"status":{"replicas":4,"fullyLabeledReplicas":4,"readyReplicas":3,"availableReplicas":2}}`, nil},
		{"too many", `{}`, `{"status":{"replicas":1,"fullyLabeledReplicas":2,"readyReplicas":1,"availableReplicas":1}}`, []string{`status.fullyLabeledReplicas: Invalid value: 2: cannot be greater than status.replicas`}},
		{"negative", `{}`, `{"status":{"replicas":-1}}`, []string{
			`status.replicas: Invalid value: -1: must be greater than or equal to 0`,
			`status.fullyLabeledReplicas: Invalid value: 0: cannot be greater than status.replicas`,
			`status.readyReplicas: Invalid value: 0: cannot be greater than status.replicas`,
			`status.availableReplicas: Invalid value: 0: cannot be greater than status.replicas`}},
	})
}

func TestScale(t *testing.T) {
	creates(t, `{"metadata":{"name":"orders","namespace":"shop"},"spec":{"replicas":3}}`, Scale, []row{
		{"valid", `{}`, nil},
		{"none", `{"spec":{"replicas":0}}`, nil},
		{"negative", `{"spec":{"replicas":-1}}`, []string{`spec.replicas: Invalid value: -1: must be greater than or equal to 0`}},
		{"no name", `{"metadata":{"name":""}}`, []string{`metadata.name: Required value: name or generateName is required`}},
	})
}

func TestWorkloadFieldsAreDecided(t *testing.T) {
	decided[appsv1.DeploymentSpec](t, []string{"Replicas", "Selector", "Template", "Strategy", "MinReadySeconds", "RevisionHistoryLimit", "Paused", "ProgressDeadlineSeconds"})
	decided[appsv1.ReplicaSetSpec](t, []string{"Replicas", "Selector", "Template", "MinReadySeconds"})
	decided[autoscalingv1.ScaleSpec](t, []string{"Replicas"})
}
