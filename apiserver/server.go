// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/namespace/lifecycle"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	apiopenapi "k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	serveroptions "k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	restclient "k8s.io/client-go/rest"

	"github.com/fairlead/fairlead/apiserver/nodeport"
	"github.com/fairlead/fairlead/apiserver/openapi"
	"github.com/fairlead/fairlead/pki"
)

const (
	// etcdPrefix is the root of the API's keys, the same as Kubernetes'.
	etcdPrefix = "/registry"
	// shutdownGrace bounds how long open watches may delay the end.
	shutdownGrace = 2 * time.Second
	// closeGrace bounds how long idle connections may.
	closeGrace = 3 * time.Second
	// requestTimeout bounds every request that is not a watch.
	requestTimeout = 60 * time.Second
	// bootstrapTimeout bounds the writes that a new server begins with.
	bootstrapTimeout = 30 * time.Second
)

// Config says what to serve, where and as whom.
type Config struct {
	// StateDir is where the database is; the server keeps to its
	// subdirectory etcd.
	StateDir string
	// Listeners are where clients connect, at least one; the first gives the
	// server its address in messages. They belong to the server afterwards.
	Listeners []net.Listener
	// ServiceCIDRs are the ranges of ClusterIPs: one, or one of each family
	// with the primary first.
	ServiceCIDRs []netip.Prefix
	// NodePorts is the range of the Services' ports on the nodes; zero is
	// 30000-32767.
	NodePorts utilnet.PortRange
	// AdvertiseAddr is where pods reach the server; discovery names it. When
	// not valid, the first listener's address is used.
	AdvertiseAddr netip.AddrPort
	// PKI has the server's certificate and the authority of the clients'.
	PKI *pki.PKI
	// ExternalEtcd names an etcd cluster to use in place of the embedded
	// one. No Servers is the embedded one.
	ExternalEtcd ExternalEtcd
	// Logger gets a line when the server is ready and when it ends.
	Logger *slog.Logger
}

// ExternalEtcd is how to reach an etcd cluster.
type ExternalEtcd struct {
	// Servers are URLs, such as https://192.0.2.1:2379.
	Servers []string
	// CAFile, CertFile and KeyFile are paths of PEM files, for https.
	CAFile, CertFile, KeyFile string
}

// Server is an API server with its database open. Close it, or Run it, which
// closes it in the end.
type Server struct {
	config   Config
	log      *slog.Logger
	etcd     *etcd // nil if external
	kinds    *kinds
	generic  *genericapiserver.GenericAPIServer
	loopback *restclient.Config
	client   kubernetes.Interface
	services *serviceStore
	ready    chan struct{}
	// abort ends Run with a reason. Run sets it before anything can need it.
	abort context.CancelCauseFunc
}

// New opens the database and builds the server. It serves nothing until Run.
// It returns ErrInUse if the state directory is another server's.
func New(ctx context.Context, config Config) (_ *Server, err error) {
	if err := config.check(); err != nil {
		return nil, err
	}
	s := &Server{config: config, log: config.Logger, ready: make(chan struct{})}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.kinds, err = newKinds(); err != nil {
		return nil, err
	}
	backend := storagebackend.TransportConfig{
		ServerList:    config.ExternalEtcd.Servers,
		TrustedCAFile: config.ExternalEtcd.CAFile,
		CertFile:      config.ExternalEtcd.CertFile,
		KeyFile:       config.ExternalEtcd.KeyFile,
	}
	if len(backend.ServerList) == 0 {
		if s.etcd, err = startEtcd(ctx, filepath.Join(config.StateDir, "etcd")); err != nil {
			return nil, err
		}
		backend.ServerList = []string{s.etcd.endpoint}
	}
	if err := s.build(backend); err != nil {
		return nil, err
	}
	return s, nil
}

// check says what is missing.
func (c *Config) check() error {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.NodePorts == (utilnet.PortRange{}) {
		c.NodePorts = nodeport.DefaultRange
	}
	switch {
	case c.PKI == nil:
		return errors.New("check configuration: there is no PKI")
	case len(c.Listeners) == 0:
		return errors.New("check configuration: there is no listener")
	case len(c.ServiceCIDRs) == 0 || len(c.ServiceCIDRs) > 2:
		return fmt.Errorf("check configuration: there must be one service CIDR or two, not %d", len(c.ServiceCIDRs))
	case len(c.ServiceCIDRs) == 2 && c.ServiceCIDRs[0].Addr().Is4() == c.ServiceCIDRs[1].Addr().Is4():
		return errors.New("check configuration: two service CIDRs must be of different families")
	case c.StateDir == "" && len(c.ExternalEtcd.Servers) == 0:
		return errors.New("check configuration: there is neither a state directory nor an external etcd")
	}
	return nil
}

// build makes the generic server and installs the kinds in it.
func (s *Server) build(backend storagebackend.TransportConfig) error {
	local := newInProcess()
	config := genericapiserver.NewConfig(s.kinds.codecs)
	if err := s.secure(config, local); err != nil {
		return err
	}
	var err error
	if s.client, err = kubernetes.NewForConfig(s.loopback); err != nil {
		return fmt.Errorf("make loopback client: %w", err)
	}
	shared := informers.NewSharedInformerFactory(s.client, 0)
	if config.AdmissionControl, err = s.admission(shared); err != nil {
		return err
	}
	if err := s.store(config, backend); err != nil {
		return err
	}
	config.EffectiveVersion = newVersion()
	namer := apiopenapi.NewDefinitionNamer(s.kinds.external)
	config.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(openapi.GetOpenAPIDefinitions, namer)
	config.OpenAPIConfig.Info.Title = "Fairlead"
	config.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(openapi.GetOpenAPIDefinitions, namer)
	config.OpenAPIV3Config.Info.Title = "Fairlead"
	config.RequestTimeout = requestTimeout
	config.ShutdownWatchTerminationGracePeriod = shutdownGrace
	if err := config.AddPostStartHook("fairlead-bootstrap", s.bootstrap(shared)); err != nil {
		return fmt.Errorf("add bootstrap hook: %w", err)
	}
	if s.generic, err = config.Complete(shared).New("fairlead", genericapiserver.NewEmptyDelegate()); err != nil {
		return fmt.Errorf("make server: %w", err)
	}
	// Requests under way are waited for as long as they may take; this is for
	// connections, of which one that is just being made is never told to go.
	s.generic.ShutdownTimeout = closeGrace
	return s.install(config)
}

// secure sets where and with which certificate to serve, who clients are and
// what they may do; and the configuration of the loopback client, which is
// known by a random token that never leaves this process.
func (s *Server) secure(config *genericapiserver.Config, local *inProcess) error {
	serving, err := dynamiccertificates.NewStaticCertKeyContent("server", s.config.PKI.Server.Cert, s.config.PKI.Server.Key)
	if err != nil {
		return fmt.Errorf("use server certificate: %w", err)
	}
	clientCA, err := dynamiccertificates.NewStaticCAContent("client-ca", s.config.PKI.CA)
	if err != nil {
		return fmt.Errorf("use client authority: %w", err)
	}
	config.SecureServing = &genericapiserver.SecureServingInfo{
		Listener: join(append(s.config.Listeners[:len(s.config.Listeners):len(s.config.Listeners)], local)...),
		Cert:     serving,
		ClientCA: clientCA,
	}
	config.ExternalAddress = s.config.Listeners[0].Addr().String()
	if s.config.AdvertiseAddr.IsValid() {
		config.ExternalAddress = s.config.AdvertiseAddr.String()
	}
	if config.Authentication.Authenticator, err = newAuthenticator(clientCA); err != nil {
		return err
	}
	config.Authorization.Authorizer = authorizer.AuthorizerFunc(authorize)
	s.loopback = &restclient.Config{
		Host:            "https://localhost",
		BearerToken:     rand.Text(),
		TLSClientConfig: restclient.TLSClientConfig{CAData: s.config.PKI.CA},
		QPS:             -1,
		Dial:            local.Dial,
		UserAgent:       "fairlead-server",
		ContentConfig: restclient.ContentConfig{
			ContentType:        runtime.ContentTypeProtobuf,
			AcceptContentTypes: runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON,
		},
	}
	config.LoopbackClientConfig = s.loopback
	return nil
}

// admission is what judges a request by the objects it is about.
func (s *Server) admission(shared informers.SharedInformerFactory) (admission.Interface, error) {
	namespaced, err := lifecycle.NewLifecycle(sets.New(
		metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic))
	if err != nil {
		return nil, fmt.Errorf("make namespace admission: %w", err)
	}
	namespaced.SetExternalKubeClientSet(s.client)
	namespaced.SetExternalKubeInformerFactory(shared)
	return admission.NewChainHandler(namespaced, newNodeRestriction()), nil
}

// store sets where objects are kept: in etcd as protobuf, with a watch cache
// before it for each kind.
func (s *Server) store(config *genericapiserver.Config, backend storagebackend.TransportConfig) error {
	codec, versioner, err := s.kinds.storageCodec()
	if err != nil {
		return err
	}
	storage := storagebackend.NewDefaultConfig(etcdPrefix, codec)
	storage.EncodeVersioner = versioner
	backend.TracerProvider = storage.Transport.TracerProvider
	storage.Transport = backend
	options := serveroptions.NewEtcdOptions(storage)
	// Counting objects feeds a metric and a fairness filter, which is not
	// used here; it would wake an idle server.
	options.StorageConfig.CountMetricPollPeriod = 0
	options.DeleteCollectionWorkers = 4
	// Locks are read from the storage itself, and nobody watches these.
	options.WatchCacheSizes = []string{nodePortLocks.plural + "#0"}
	if err := options.ApplyTo(config); err != nil {
		return fmt.Errorf("use etcd: %w", err)
	}
	return nil
}

// install adds the kinds of every group.
func (s *Server) install(config *genericapiserver.Config) error {
	storage, err := s.storages(config)
	if err != nil {
		return err
	}
	var groups []*genericapiserver.APIGroupInfo
	for _, group := range served {
		resources := storage[group.gv]
		if len(resources) == 0 {
			continue
		}
		info := genericapiserver.NewDefaultAPIGroupInfo(group.gv.Group, s.kinds.scheme, runtime.NewParameterCodec(s.kinds.scheme), s.kinds.codecs)
		info.PrioritizedVersions = []schema.GroupVersion{group.gv}
		info.VersionedResourcesStorageMap[group.gv.Version] = resources
		if group.gv.Group != "" {
			groups = append(groups, &info)
			continue
		}
		if err := s.generic.InstallLegacyAPIGroup(genericapiserver.DefaultLegacyAPIPrefix, &info); err != nil {
			return fmt.Errorf("install %s: %w", group.gv, err)
		}
	}
	if err := s.generic.InstallAPIGroups(groups...); err != nil {
		return fmt.Errorf("install groups: %w", err)
	}
	return nil
}

// LoopbackConfig reaches the server from this process, with full rights. It
// works from the moment that Run is called.
func (s *Server) LoopbackConfig() *restclient.Config { return restclient.CopyConfig(s.loopback) }

// Ready is closed when the server answers and has its namespaces.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run serves until ctx ends, lets requests under way finish, and closes the
// server. It returns early if the database fails.
func (s *Server) Run(ctx context.Context) error {
	defer s.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.abort = cancel
	if s.etcd != nil {
		go func() {
			select {
			case err := <-s.etcd.server.Err():
				cancel(fmt.Errorf("etcd failed: %w", err))
			case <-ctx.Done():
			}
		}()
	}
	prepared := s.generic.PrepareRun()
	err := prepared.RunWithContext(ctx)
	s.log.Info("api server ended")
	if cause := context.Cause(ctx); err == nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	if err != nil {
		return fmt.Errorf("run api server: %w", err)
	}
	return nil
}

// Close ends a server that was not run.
func (s *Server) Close() {
	for _, l := range s.config.Listeners {
		l.Close()
	}
	if s.etcd != nil {
		s.etcd.close()
		s.etcd = nil
	}
}
