{{- define "gateway.name" -}}
{{ .Values.name | default .Release.Name }}
{{- end }}

{{- define "gateway.serviceAccount" -}}
{{- if .Values.serviceAccount.name }}{{ .Values.serviceAccount.name }}
{{- else if .Values.serviceAccount.create }}{{ include "gateway.name" . }}
{{- else }}default{{ end }}
{{- end }}

{{- /* What pods are selected by: by the Service, and by Gateways. */ -}}
{{- define "gateway.selector" -}}
{{- $name := include "gateway.name" . -}}
{{- toYaml (mergeOverwrite (dict "app" $name "istio" (trimPrefix "istio-" $name)) .Values.labels) }}
{{- end }}

{{- define "gateway.labels" -}}
{{ include "gateway.selector" . }}
app.kubernetes.io/name: {{ include "gateway.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/part-of: weft
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.networkGateway }}
topology.istio.io/network: {{ . | quote }}
{{- end }}
{{- end }}

{{- define "gateway.least" -}}
{{- if and .Values.autoscale.enabled (kindIs "invalid" .Values.replicas) }}{{ .Values.autoscale.min }}{{ else }}{{ .Values.replicas | default 1 }}{{ end }}
{{- end }}
