// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import "github.com/fairlead/fairlead/model"

// ahead reads what a batch of queries is likely to be about before the first of them is answered, and does nothing with it.
//
// Among ten thousand Services, what an answer is made from is rarely in the processor's caches: the Service's place in the table, itself, its name, its
// addresses. Each of these has to be there before it is known where the next one is, so a query waits for four in a row, which takes longer than all that is computed for it.
// Read step by step for the whole batch, those of one step come at the same time.
type ahead struct {
	asked    plain
	places   [batchSize]model.Place
	services [batchSize]*model.Service
	sum      int // of what was read, which would not be read if nothing were done with it
}

// read reads for the messages of an inbox.
func (a *ahead) read(snap *model.Snapshot, in *inbox) {
	n := 0
	for i := range in.n {
		if _, msg := in.message(i); a.asked.parse(msg) {
			if name, ok := a.asked.likely(); ok {
				a.places[n] = model.PlaceOf(name)
				n++
			}
		}
	}
	services := a.services[:n]
	a.sum += snap.Services.Peek(a.places[:n], services)
	for _, svc := range services {
		if svc != nil {
			a.sum += len(svc.Name.Name) + len(svc.ClusterIPs) + len(svc.Endpoints)
		}
	}
	for _, svc := range services {
		if svc == nil {
			continue
		}
		if name := svc.Name.Name; name != "" {
			a.sum += int(name[0])
		}
		if len(svc.ClusterIPs) > 0 {
			a.sum += svc.ClusterIPs[0].BitLen()
		}
		if len(svc.Endpoints) > 0 {
			a.sum += svc.Endpoints[0].Addr.BitLen()
		}
	}
}

// likely is the Service that a name is about, in whatever domain: what is before the label "svc". It must not be kept.
func (q *plain) likely() (name model.Name, ok bool) {
	for i := q.count - 1; i >= 2; i-- {
		if string(q.label(i)) == "svc" {
			return model.Name{Namespace: view(q.label(i - 1)), Name: view(q.label(i - 2))}, true
		}
	}
	return name, false
}
