// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"maps"
	"slices"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// leftOut are the fields of a message, by their numbers, that are not decoded: nil, the whole field; else what is left out within it.
type leftOut map[protowire.Number]leftOut

// metadata is that of every object: who wrote which field (managedFields) is half of most objects, and nothing here asks.
var metadata = leftOut{fieldManaged: nil}

// unread are the fields that nobody here reads, by kind; the numbers are those of generated.proto in k8s.io/api, which never change. A Node is the largest
// object there is, and each agent hears of each every few minutes: what it has room for, its versions, images and volumes are two thirds of it, and when its kubelet
// was last heard of is all that changes.
var unread = func() map[string]leftOut {
	object := leftOut{fieldMeta: metadata}
	condition := leftOut{3: nil, 4: nil, 5: nil, 6: nil}
	kinds := map[string]leftOut{
		"Service":       object,
		"EndpointSlice": object,
		"Pod":           object,
		"Node":          {fieldMeta: metadata, 3: {1: nil, 2: nil, 4: condition, 6: nil, 7: nil, 8: nil, 9: nil, 10: nil, 11: nil, 12: nil, 13: nil, 14: nil}},
	}
	for kind, out := range kinds {
		kinds[kind+"List"] = leftOut{2: out}
	}
	return kinds
}()

// repeated are the kinds of which a watch brings the same again and again, with what is left out of them there: their version, which is another each time, is told
// beside. A Pod of this node is none: what comes of it counts anew, because who attaches pods speaks of them too.
var repeated = func() map[string]leftOut {
	kinds := make(map[string]leftOut)
	for _, kind := range []string{"Service", "EndpointSlice", "Node"} {
		out := maps.Clone(unread[kind])
		out[fieldMeta] = leftOut{fieldManaged: nil, fieldVersion: nil}
		kinds[kind] = out
	}
	return kinds
}()

// lean decodes objects without what is unread, which is dropped before it becomes memory: most of what a list or a watch costs is decoding it and collecting
// the garbage. What a watch brings of the kinds that are repeated becomes a [message]. What is not in protobuf, or is not as it should be, is left to the decoder as
// it came.
type lean struct{ runtime.Serializer }

// leanly has a serializer's protobuf decoded leanly.
type leanly struct{ runtime.NegotiatedSerializer }

// SupportedMediaTypes implements runtime.NegotiatedSerializer.
func (s leanly) SupportedMediaTypes() []runtime.SerializerInfo {
	infos := slices.Clone(s.NegotiatedSerializer.SupportedMediaTypes())
	for i := range infos {
		if infos[i].MediaType == runtime.ContentTypeProtobuf {
			infos[i].Serializer = lean{infos[i].Serializer}
		}
	}
	return infos
}

// leanBuffers are where messages are written without what is unread: the decoder copies what it keeps.
var leanBuffers = sync.Pool{New: func() any { return new([]byte) }}

// Decode implements runtime.Decoder.
func (s lean) Decode(data []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	buf := leanBuffers.Get().(*[]byte)
	defer leanBuffers.Put(buf)
	gvk, unknown := kindOf(data)
	if out, ok := repeated[gvk.Kind]; ok && into == nil {
		if body, ok := out.message((*buf)[:0], unknown); ok {
			*buf = body
			if m, ok := newMessage(unknown, body, s.Serializer); ok {
				return m, &gvk, nil
			}
		}
	}
	if out, ok := unread[gvk.Kind]; ok {
		if short, ok := out.message((*buf)[:0], unknown); ok {
			*buf, data = short, short
		}
	}
	return s.Serializer.Decode(data, defaults, into)
}

// magic is what an object in protobuf begins with; runtime.Unknown follows.
var magic = []byte("k8s\x00")

// The fields of runtime.Unknown, of runtime.TypeMeta in it, of every object, and of its metadata.
const (
	fieldType       = 1
	fieldRaw        = 2
	fieldAPIVersion = 1
	fieldKind       = 2

	fieldMeta      = 1
	fieldName      = 1
	fieldNamespace = 3
	fieldVersion   = 6
	fieldManaged   = 17
)

// kindOf is the kind of an object that the API server sends in protobuf, and what is behind the magic; empty: it is something else.
func kindOf(data []byte) (kind schema.GroupVersionKind, unknown []byte) {
	unknown, ok := bytes.CutPrefix(data, magic)
	if !ok {
		return kind, nil
	}
	of := field(unknown, fieldType)
	return schema.FromAPIVersionAndKind(string(field(of, fieldAPIVersion)), string(field(of, fieldKind))), unknown
}

// message appends an object as the API server sends it without the fields; not ok: it is malformed.
func (l leftOut) message(dst, unknown []byte) (out []byte, ok bool) {
	return leftOut{fieldRaw: l}.copy(append(dst, magic...), unknown)
}

// field is the field of a number that has bytes, if there is one and no more.
func field(msg []byte, number protowire.Number) (value []byte) {
	for len(msg) > 0 {
		num, typ, n := protowire.ConsumeTag(msg)
		if n < 0 {
			return nil
		}
		m := protowire.ConsumeFieldValue(num, typ, msg[n:])
		if m < 0 {
			return nil
		}
		if num == number {
			if value != nil || typ != protowire.BytesType {
				return nil
			}
			value, _ = protowire.ConsumeBytes(msg[n:])
		}
		msg = msg[n+m:]
	}
	return value
}

// copy appends a message without the fields; not ok: it is malformed.
func (l leftOut) copy(dst, msg []byte) (out []byte, ok bool) {
	for len(msg) > 0 {
		num, typ, n := protowire.ConsumeTag(msg)
		if n < 0 {
			return dst, false
		}
		m := protowire.ConsumeFieldValue(num, typ, msg[n:])
		if m < 0 {
			return dst, false
		}
		whole, value := msg[:n+m], msg[n:n+m]
		msg = msg[n+m:]
		switch within, listed := l[num]; {
		case !listed || within != nil && typ != protowire.BytesType:
			dst = append(dst, whole...)
		case within != nil:
			value, _ := protowire.ConsumeBytes(value)
			dst = append(dst, whole[:len(whole)-len(value)]...) // with the old length, whose place the new one takes
			at := len(dst)
			if dst, ok = within.copy(dst, value); !ok {
				return dst, false
			}
			putLength(dst[at-(m-len(value)):at], len(dst)-at)
		}
	}
	return dst, true
}

// putLength fills a place with a varint, which may be longer than it need be.
func putLength(place []byte, n int) {
	for i := range place {
		place[i] = byte(n>>(7*i))&0x7f | 0x80
	}
	place[len(place)-1] &= 0x7f
}
