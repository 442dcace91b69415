{{- /* The name of everything that is there once for a revision: Istio's. */ -}}
{{- define "weft.name" -}}
istiod{{ include "weft.suffix" . }}
{{- end }}

{{- define "weft.revision" -}}
{{ .Values.revision | default "default" }}
{{- end }}

{{- define "weft.suffix" -}}
{{- if and .Values.revision (ne .Values.revision "default") }}-{{ .Values.revision }}{{ end }}
{{- end }}

{{- define "weft.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "weft.name" .) }}
{{- end }}

{{- /* What the objects of the cluster are called, so that releases in several namespaces do not collide. */ -}}
{{- define "weft.clusterName" -}}
weft{{ include "weft.suffix" . }}-{{ .Release.Namespace }}
{{- end }}

{{- define "weft.selector" -}}
app: istiod
istio.io/rev: {{ include "weft.revision" . | quote }}
{{- end }}

{{- define "weft.labels" -}}
{{ include "weft.selector" . }}
{{- if not (include "weft.suffix" .) }}
istio: pilot
{{- end }}
app.kubernetes.io/name: istiod
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/part-of: weft
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "weft.image" -}}
{{- $image := .Values.image -}}
{{- if $image.registry }}{{ $image.registry }}/{{ end }}{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- /* The values that a profile sets, with what the user says over it. */ -}}
{{- define "weft.sizes" -}}
{{- $small := dict "requests" (dict "cpu" "50m" "memory" "64Mi") -}}
{{- $usual := dict "requests" (dict "cpu" "200m" "memory" "256Mi") "limits" (dict "memory" "2Gi") -}}
{{- $profiles := dict
  "demo" (dict "replicas" 1 "autoscale" false "min" 1 "max" 1 "priority" "" "resources" $small)
  "default" (dict "replicas" 2 "autoscale" true "min" 2 "max" 5 "priority" "" "resources" $usual)
  "ha" (dict "replicas" 3 "autoscale" true "min" 3 "max" 9 "priority" "system-cluster-critical" "resources" $usual)
-}}
{{- $profile := get $profiles .Values.profile -}}
{{- $of := dict
  "replicas" .Values.replicas "autoscale" .Values.autoscale.enabled "min" .Values.autoscale.min
  "max" .Values.autoscale.max "priority" .Values.priorityClassName "resources" .Values.resources
-}}
{{- $sizes := dict -}}
{{- range $key, $value := $of -}}
{{- $_ := set $sizes $key (ternary (get $profile $key) $value (kindIs "invalid" $value)) -}}
{{- end -}}
{{- if and $sizes.autoscale (gt (int $sizes.min) (int $sizes.max)) -}}
{{- fail (printf "autoscale.min (%d) is more than autoscale.max (%d)" (int $sizes.min) (int $sizes.max)) -}}
{{- end -}}
{{- $_ := set $sizes "least" (ternary (int $sizes.min) (int $sizes.replicas) $sizes.autoscale) -}}
{{- toJson $sizes -}}
{{- end }}

{{- /* Whether this release is what pods and objects without a revision belong to. */ -}}
{{- define "weft.isDefault" -}}
{{- if or (not (include "weft.suffix" .)) (has "default" .Values.revisionTags) }}true{{ end }}
{{- end }}

{{- /* As Istio names them: the namespace is left out where it is the usual one. */ -}}
{{- define "weft.injector" -}}
istio-sidecar-injector{{ include "weft.suffix" . }}{{ if ne .Release.Namespace "istio-system" }}-{{ .Release.Namespace }}{{ end }}
{{- end }}

{{- define "weft.validator" -}}
istio-validator{{ include "weft.suffix" . }}-{{ .Release.Namespace }}
{{- end }}

{{- /* How API servers ask; the argument is a list of the root and a path. */ -}}
{{- define "weft.clientConfig" -}}
{{- $root := index . 0 -}}
{{- if $root.Values.webhooks.url }}
url: {{ printf "%s%s" (trimSuffix "/" $root.Values.webhooks.url) (index . 1) | quote }}
{{- else }}
service: { name: {{ include "weft.name" $root }}, namespace: {{ $root.Release.Namespace }}, path: {{ index . 1 }}, port: 443 }
{{- end }}
{{- end }}

{{- /* Kubernetes' own pods must start without anybody's help. So must weftd's, which are labelled. */ -}}
{{- define "weft.notExcluded" -}}
{{- $own := list "kube-system" "kube-public" "kube-node-lease" -}}
- { key: kubernetes.io/metadata.name, operator: NotIn, values: {{ concat $own .Values.webhooks.excludedNamespaces | uniq | toJson }} }
{{- end }}

{{- /* The webhooks of one revision or tag; the argument is a list of the root and the name. */ -}}
{{- define "weft.injection" -}}
{{- $root := index . 0 -}}
{{- $revision := index . 1 -}}
{{- $hooks := dict
  "rev.namespace" (dict
    "namespace" (list (dict "key" "istio.io/rev" "operator" "In" "values" (list $revision)) (dict "key" "istio-injection" "operator" "DoesNotExist"))
    "object" (list (dict "key" "sidecar.istio.io/inject" "operator" "NotIn" "values" (list "false"))))
  "rev.object" (dict
    "namespace" (list (dict "key" "istio.io/rev" "operator" "DoesNotExist") (dict "key" "istio-injection" "operator" "DoesNotExist"))
    "object" (list (dict "key" "sidecar.istio.io/inject" "operator" "NotIn" "values" (list "false")) (dict "key" "istio.io/rev" "operator" "In" "values" (list $revision))))
-}}
{{- $order := list "rev.namespace" "rev.object" -}}
{{- if eq $revision "default" -}}
{{- $_ := set $hooks "namespace" (dict
    "namespace" (list (dict "key" "istio-injection" "operator" "In" "values" (list "enabled")))
    "object" (list (dict "key" "sidecar.istio.io/inject" "operator" "NotIn" "values" (list "false")))) -}}
{{- $_ := set $hooks "object" (dict
    "namespace" (list (dict "key" "istio-injection" "operator" "DoesNotExist") (dict "key" "istio.io/rev" "operator" "DoesNotExist"))
    "object" (list (dict "key" "sidecar.istio.io/inject" "operator" "In" "values" (list "true")) (dict "key" "istio.io/rev" "operator" "DoesNotExist"))) -}}
{{- $order = concat $order (list "namespace" "object") -}}
{{- if $root.Values.sidecarInjectorWebhook.enableNamespacesByDefault -}}
{{- $_ := set $hooks "auto" (dict
    "namespace" (list (dict "key" "istio-injection" "operator" "DoesNotExist") (dict "key" "istio.io/rev" "operator" "DoesNotExist"))
    "object" (list (dict "key" "sidecar.istio.io/inject" "operator" "DoesNotExist") (dict "key" "istio.io/rev" "operator" "DoesNotExist"))) -}}
{{- $order = append $order "auto" -}}
{{- end -}}
{{- end -}}
{{- range $order }}
{{- $hook := get $hooks . }}
- name: {{ . }}.sidecar-injector.istio.io
  clientConfig: {{- include "weft.clientConfig" (list $root "/inject") | nindent 4 }}
  rules:
    - { apiGroups: [""], apiVersions: [v1], resources: [pods], operations: [CREATE] }
  sideEffects: None
  admissionReviewVersions: [v1]
  failurePolicy: {{ $root.Values.webhooks.injectionFailurePolicy }}
  reinvocationPolicy: {{ $root.Values.sidecarInjectorWebhook.reinvocationPolicy }}
  timeoutSeconds: {{ $root.Values.webhooks.timeoutSeconds }}
  namespaceSelector:
    matchExpressions:
      {{- toYaml $hook.namespace | nindent 6 }}
      {{- include "weft.notExcluded" $root | nindent 6 }}
  objectSelector:
    matchExpressions:
      {{- toYaml $hook.object | nindent 6 }}
{{- end }}
{{- end }}

{{- /* A Service that leads to this release; the argument is a list of the root, the name, and the tag that it is for. */ -}}
{{- define "weft.service" -}}
{{- $root := index . 0 -}}
{{- $tag := index . 2 -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ index . 1 }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "weft.labels" $root | nindent 4 }}
    {{- with $tag }}
    istio.io/tag: {{ . | quote }}
    {{- end }}
  {{- with $root.Values.serviceAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  selector: {{- include "weft.selector" $root | nindent 4 }}
  ports:
    - { name: grpc-xds, port: 15010, protocol: TCP }
    - { name: https-dns, port: 15012, protocol: TCP }
    - { name: https-webhook, port: 443, targetPort: 15017, protocol: TCP }
    - { name: http-monitoring, port: 15014, protocol: TCP }
{{- end }}
