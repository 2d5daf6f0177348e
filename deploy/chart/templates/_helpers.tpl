{{- define "fairlead.labels" -}}
app.kubernetes.io/name: fairlead
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- if ne .Release.Service "manifest" }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
{{- end }}

{{- define "fairlead.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- /* Where the agent says how it is. Without the service proxy, the port is kube-proxy's, and the agent takes another one, for its probes only. */ -}}
{{- define "fairlead.healthz" -}}
{{- if .Values.proxy.enabled }}{{ .Values.proxy.healthzBindAddress }}{{ else }}127.0.0.1:10266{{ end }}
{{- end }}

{{- /* What the schema cannot say. Each refusal names the value, and what would be accepted. */ -}}
{{- define "fairlead.check" -}}
{{- $v := .Values }}
{{- if ne .Release.Namespace "kube-system" }}
{{- fail (printf "the namespace is %q: install into kube-system (--namespace kube-system), where the Service kube-dns finds the agents" .Release.Namespace) }}
{{- end }}
{{- if not (or $v.proxy.enabled $v.dns.enabled $v.network.enabled) }}
{{- fail "proxy.enabled, dns.enabled and network.enabled are all false: nothing would be left to do; switch one on" }}
{{- end }}
{{- if and $v.proxy.enabled (not $v.apiServer) }}
{{- fail "apiServer is empty: name the API server's own address as HOST:PORT (kubectl cluster-info shows it), since its ClusterIP works only after the service proxy does; it may be empty only with proxy.enabled=false" }}
{{- end }}
{{- range without (splitList "," $v.apiServer) "" }}
{{- $port := splitList ":" . | last | int }}
{{- if or (lt $port 1) (gt $port 65535) (not (regexMatch "^([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\\[[0-9A-Fa-f:.]+\\]):[0-9]+$" .)) }}
{{- fail (printf "apiServer has %q: want HOST:PORT, such as 192.0.2.1:6443 or [2001:db8::1]:6443, without https://" .) }}
{{- end }}
{{- end }}
{{- $octet := "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])" }}
{{- $ipv4 := printf "%s(\\.%s){3}" $octet $octet }}
{{- $ipv6 := "[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*" }}
{{- $range := printf "^(%s/(3[0-2]|[12]?[0-9])|%s/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))$" $ipv4 $ipv6 }}
{{- range $name, $ranges := dict "serviceCIDRs" $v.serviceCIDRs "podCIDRs" $v.podCIDRs "proxy.nodePortAddresses" $v.proxy.nodePortAddresses "dns.clients" $v.dns.clients "network.nonMasqueradeCIDRs" $v.network.nonMasqueradeCIDRs }}
{{- range $ranges }}
{{- if not (regexMatch $range .) }}
{{- fail (printf "%s has %q: want ranges such as 10.96.0.0/12 or fd00:96::/112" $name .) }}
{{- end }}
{{- end }}
{{- end }}
{{- range $name, $pair := dict "serviceCIDRs" $v.serviceCIDRs "podCIDRs" $v.podCIDRs "dns.ips" $v.dns.ips }}
{{- if and (eq (len $pair) 2) (eq (contains ":" (first $pair)) (contains ":" (last $pair))) }}
{{- fail (printf "%s has two of one family: want one, or one IPv4 and one IPv6" $name) }}
{{- end }}
{{- end }}
{{- range $v.dns.ips }}
{{- if not (regexMatch (printf "^(%s|%s)$" $ipv4 $ipv6) .) }}
{{- fail (printf "dns.ips has %q: want addresses such as 10.96.0.10 or fd00:96::a" .) }}
{{- end }}
{{- end }}
{{- if and $v.dns.corefileConfigMap $v.dns.upstreams }}
{{- fail "dns.upstreams and dns.corefileConfigMap are both given: the Corefile says where names are forwarded; empty one of them" }}
{{- end }}
{{- range $name, $dir := dict "stateDir" $v.stateDir "network.cniBinDir" $v.network.cniBinDir "network.cniConfDir" $v.network.cniConfDir }}
{{- if not (regexMatch "^(/[^/ ]+)+$" $dir) }}
{{- fail (printf "%s is %q: want an absolute path, without a slash at its end" $name $dir) }}
{{- end }}
{{- end }}
{{- if not (regexMatch "^(sha256:[0-9a-f]{64})?$" $v.image.digest) }}
{{- fail (printf "image.digest is %q: want sha256: and 64 hexadecimal digits, or nothing" $v.image.digest) }}
{{- end }}
{{- range $v.extraArgs }}
{{- if not (hasPrefix "--" .) }}
{{- fail (printf "extraArgs has %q: want flags of fairlead agent, such as --dns-log=errors" .) }}
{{- end }}
{{- end }}
{{- if not (regexMatch "^(0\\.0\\.0\\.0|127\\.0\\.0\\.1|\\[::\\]):[1-9][0-9]{0,4}$" $v.proxy.healthzBindAddress) }}
{{- fail (printf "proxy.healthzBindAddress is %q: want 0.0.0.0:PORT, [::]:PORT or 127.0.0.1:PORT, since the pod's probes ask 127.0.0.1" $v.proxy.healthzBindAddress) }}
{{- end }}
{{- $own := dict "podLabels" (include "fairlead.labels" . | fromYaml) "podAnnotations" (dict "kubectl.kubernetes.io/default-container" "") }}
{{- range $name, $more := dict "podLabels" $v.podLabels "podAnnotations" $v.podAnnotations }}
{{- range $key, $value := $more }}
{{- if hasKey (get $own $name) $key }}
{{- fail (printf "%s has %s, which is the chart's own: leave it out" $name $key) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
