// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"hash/maphash"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/fairlead/fairlead/model"
)

// message is an object as a watch has brought it: not decoded yet, and it need not be where the same was brought before. Most are the same: what an API server lists
// again after it has forgotten where a watch was, and a Node whose kubelet says that it is still there.
//
// Whether it is the same is for who takes it in to say (see [watched]), and not for who decodes: a watch reads ahead of what has been taken in.
type message struct {
	named
	version string
	body    []byte // without what is unread and without the version
	decoder runtime.Decoder
}

// named is the metadata of an object that has nothing beside its name. Of its own it would be most of the memory of a list, so it is the same for all.
type named struct {
	*metav1.ObjectMeta
	name model.Name
}

var noMeta metav1.ObjectMeta

// GetNamespace implements metav1.Object.
func (n named) GetNamespace() string { return n.name.Namespace }

// GetName implements metav1.Object.
func (n named) GetName() string { return n.name.Name }

// newMessage is of an object as it was sent, and of what is to be decoded of it, which is copied. It is false for what has no name: the bookmark of a watch, or what
// is not as it should be.
func newMessage(unknown, body []byte, d runtime.Decoder) (*message, bool) {
	meta := field(field(unknown, fieldRaw), fieldMeta)
	name := model.Name{Namespace: string(field(meta, fieldNamespace)), Name: string(field(meta, fieldName))}
	if name.Name == "" {
		return nil, false
	}
	return &message{named{&noMeta, name}, string(field(meta, fieldVersion)), bytes.Clone(body), d}, true
}

var _ runtime.Object = (*message)(nil)

// GetResourceVersion implements metav1.Object.
func (m *message) GetResourceVersion() string { return m.version }

// GetObjectKind implements runtime.Object.
func (m *message) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject implements runtime.Object. Nobody changes a message.
func (m *message) DeepCopyObject() runtime.Object { return m }

// decode makes the object, which has no version.
func (m *message) decode() (runtime.Object, error) {
	o, _, err := m.decoder.Decode(m.body, nil, nil)
	return o, err
}

// sum is a hash of it.
func (m *message) sum() uint64 { return maphash.Bytes(seed, m.body) }

// seed is that of the hashes, which nobody can choose objects for.
var seed = maphash.MakeSeed()

// sums are what the builder has each object of a resource from: the sum of the message, by a hash of the name. Of objects that did not come as messages there is none.
type sums map[uint64]uint64

// has reports whether the builder has an object from a message of that sum.
func (s sums) has(n model.Name, sum uint64) bool {
	was, ok := s[maphash.Comparable(seed, n)]
	return ok && was == sum
}

// set notes that the builder has an object from a message of that sum; 0: from something else, or no more.
func (s sums) set(n model.Name, sum uint64) {
	key := maphash.Comparable(seed, n)
	if sum == 0 {
		delete(s, key)
	} else {
		s[key] = sum
	}
}
