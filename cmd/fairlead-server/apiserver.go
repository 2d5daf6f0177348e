// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"github.com/fairlead/fairlead/apiserver"
	"github.com/fairlead/fairlead/cluster"
	"github.com/fairlead/fairlead/control"
	"github.com/fairlead/fairlead/pki"
)

// firstInheritedFD is the number of the first inherited listener.
const firstInheritedFD = 3

func init() {
	commands = append(commands, command{
		name:    "apiserver",
		summary: "run the Kubernetes API, its database and its controllers",
		run:     runAPIServer,
	})
}

// apiOptions is what the flags of the command say.
type apiOptions struct {
	dir          cluster.Dir
	inherited    int
	listen       string
	serviceCIDRs []netip.Prefix
	podCIDRs     []netip.Prefix
	nodePorts    utilnet.PortRange
	advertise    netip.AddrPort
	etcd         apiserver.ExternalEtcd
	controllers  bool
}

// parseAPIOptions reads the flags.
func parseAPIOptions(args []string, io streams) (apiOptions, error) {
	var o apiOptions
	flags := flag.NewFlagSet("apiserver", flag.ContinueOnError)
	state := flags.String("state", cluster.DefaultDir, "state `directory`")
	flags.IntVar(&o.inherited, "listen-fds", 0, "`number` of inherited listening sockets, from file descriptor 3 on")
	flags.StringVar(&o.listen, "listen", "", "`address` to listen on, such as 127.0.0.1:6443, when no socket is inherited;\nan administrator's kubeconfig for it is written to the state directory")
	flags.Func("service-cidr", "`range` of ClusterIPs, or two, of different families, with a comma (default 10.96.0.0/16)", prefixes(&o.serviceCIDRs))
	flags.Func("pod-cidr", "`range` of pod addresses, or two, of different families, with a comma (default 10.244.0.0/16)", prefixes(&o.podCIDRs))
	flags.Func("service-node-port-range", "`range` of the Services' ports on the nodes, such as 30000-32767 (the default)", o.nodePorts.Set)
	flags.Func("advertise-address", "`address:port` where pods reach the API (default: the first listener's)", func(s string) (err error) {
		o.advertise, err = netip.ParseAddrPort(s)
		return err
	})
	flags.Func("etcd-servers", "`URLs` of an external etcd cluster, with commas (default: an etcd in this process)", func(s string) error {
		o.etcd.Servers = strings.Split(s, ",")
		return nil
	})
	flags.BoolVar(&o.controllers, "controllers", true, "run the controllers too; false leaves them to another program")
	flags.StringVar(&o.etcd.CAFile, "etcd-cafile", "", "`file` with the authority of the external etcd")
	flags.StringVar(&o.etcd.CertFile, "etcd-certfile", "", "`file` with the client certificate for the external etcd")
	flags.StringVar(&o.etcd.KeyFile, "etcd-keyfile", "", "`file` with the key of that certificate")
	if err := parse(flags, args, io); err != nil {
		return o, err
	}
	if (o.inherited > 0) == (o.listen != "") {
		return o, errors.New("exactly one of --listen-fds and --listen is needed")
	}
	if len(o.serviceCIDRs) == 0 {
		o.serviceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}
	}
	if len(o.podCIDRs) == 0 {
		o.podCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
	}
	var err error
	o.dir, err = cluster.Open(*state)
	return o, err
}

// prefixes reads a list of ranges.
func prefixes(into *[]netip.Prefix) func(string) error {
	return func(s string) error {
		*into = nil
		for part := range strings.SplitSeq(s, ",") {
			prefix, err := netip.ParsePrefix(part)
			if err != nil {
				return err
			}
			if prefix != prefix.Masked() {
				return fmt.Errorf("%s has bits set beyond its length; did you mean %s?", prefix, prefix.Masked())
			}
			*into = append(*into, prefix)
		}
		return nil
	}
}

// gcPercent trades a little time for memory: an API server's heap is mostly
// what lives, so collecting twice as often costs little.
const gcPercent = 50

// runAPIServer serves until it is told to end.
func runAPIServer(ctx context.Context, args []string, io streams) error {
	o, err := parseAPIOptions(args, io)
	if err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	logger := newLogger(io.err)
	listeners, err := o.listeners()
	if err != nil {
		return err
	}
	if !o.advertise.IsValid() {
		if o.advertise, err = netip.ParseAddrPort(listeners[0].Addr().String()); err != nil {
			return fmt.Errorf("read the listener's address: %w", err)
		}
	}
	authority, err := o.authority(listeners)
	if err != nil {
		return err
	}
	if o.listen != "" {
		if err := o.writeKubeconfig(authority, listeners[0]); err != nil {
			return err
		}
	}
	server, err := apiserver.New(ctx, apiserver.Config{
		StateDir:      string(o.dir),
		Listeners:     listeners,
		ServiceCIDRs:  o.serviceCIDRs,
		NodePorts:     o.nodePorts,
		AdvertiseAddr: o.advertise,
		PKI:           authority,
		ExternalEtcd:  o.etcd,
		Logger:        logger,
	})
	if err != nil {
		return err
	}
	if !o.controllers {
		return server.Run(ctx)
	}
	return serve(ctx, server, control.Options{
		Config:       server.LoopbackConfig(),
		ServiceCIDRs: o.serviceCIDRs,
		PodCIDRs:     o.podCIDRs,
		APIAddr:      o.advertise,
		Logger:       logger,
	})
}

// serve runs the server, and the controllers once it is ready. Either ends the
// other; the controllers end first, so that they do not meet a closed server.
func serve(ctx context.Context, server *apiserver.Server, options control.Options) error {
	controlCtx, stopControl := context.WithCancel(ctx)
	defer stopControl()
	serverCtx, stopServer := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServer()
	var controlErr error
	var controllers sync.WaitGroup
	controllers.Go(func() {
		defer stopServer()
		select {
		case <-server.Ready():
			controlErr = control.Run(controlCtx, options)
		case <-controlCtx.Done():
		}
	})
	err := server.Run(serverCtx)
	stopControl()
	controllers.Wait()
	return errors.Join(err, controlErr)
}

// listeners are the sockets to serve on.
func (o *apiOptions) listeners() ([]net.Listener, error) {
	if o.listen != "" {
		l, err := net.Listen("tcp", o.listen)
		if err != nil {
			return nil, fmt.Errorf("listen: %w", err)
		}
		return []net.Listener{l}, nil
	}
	var listeners []net.Listener
	for fd := firstInheritedFD; fd < firstInheritedFD+o.inherited; fd++ {
		unix.CloseOnExec(fd)
		file := os.NewFile(uintptr(fd), fmt.Sprintf("listener %d", fd))
		l, err := net.FileListener(file)
		file.Close()
		if err != nil {
			return nil, fmt.Errorf("use inherited file descriptor %d: %w", fd, err)
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

// authority opens the cluster's authority, with a server certificate for every
// address that the API has.
func (o *apiOptions) authority(listeners []net.Listener) (*pki.PKI, error) {
	var options pki.Options
	for _, cidr := range o.serviceCIDRs {
		options.Addresses = append(options.Addresses, cidr.Addr().Next())
	}
	options.Addresses = append(options.Addresses, o.advertise.Addr())
	for _, l := range listeners {
		if addr, err := netip.ParseAddrPort(l.Addr().String()); err == nil && !addr.Addr().IsUnspecified() {
			options.Addresses = append(options.Addresses, addr.Addr().Unmap())
		}
	}
	return pki.Ensure(o.dir.PKI(), options)
}

// writeKubeconfig gives the administrator access.
func (o *apiOptions) writeKubeconfig(authority *pki.PKI, listener net.Listener) error {
	admin, err := authority.Client("admin", "system:masters")
	if err != nil {
		return err
	}
	return pki.WriteKubeconfig(o.dir.Kubeconfig(), pki.Kubeconfig{
		Server: "https://" + listener.Addr().String(),
		CA:     authority.CA,
		Client: admin,
	})
}
