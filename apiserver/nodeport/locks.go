// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nodeport

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Owner is the Service that has a number. Another one of its name has another
// UID.
type Owner struct {
	types.NamespacedName
	UID types.UID
}

// Lock is a number that is taken.
type Lock struct {
	Port  int
	Owner Owner
	// UID tells it from a later lock on the same number.
	UID     types.UID
	Created time.Time
}

// Locks is the storage of locks. Its errors are the API's
// (k8s.io/apimachinery/pkg/api/errors).
type Locks interface {
	// Create stores a lock. The error is AlreadyExists when there is one on
	// the number, and only then.
	Create(ctx context.Context, port int, owner Owner) error
	// Get reads one, from the storage and not from a cache. The error is
	// NotFound when there is none.
	Get(ctx context.Context, port int) (*Lock, error)
	// Delete removes the one on the number if it also has that UID. The error
	// is NotFound when there is none, Conflict when it is another.
	Delete(ctx context.Context, port int, uid types.UID) error
	// List reads all of them.
	List(ctx context.Context) ([]Lock, error)
}

func ownerOf(s *corev1.Service) Owner {
	return Owner{types.NamespacedName{Namespace: s.Namespace, Name: s.Name}, s.UID}
}
