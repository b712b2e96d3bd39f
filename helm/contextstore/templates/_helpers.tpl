{{- define "contextstore.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "contextstore.name" -}}
{{ printf "%s-operator" .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "contextstore.selector" -}}
app.kubernetes.io/name: contextstore-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "contextstore.labels" -}}
{{ include "contextstore.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* What the operator may do where it looks after clusters; nothing more. */}}
{{- define "contextstore.rules" -}}
- apiGroups: [contextstore.dev]
  resources: [contextclusters]
  verbs: [get, list, watch, patch]
- apiGroups: [contextstore.dev]
  resources: [contextpolicies]
  verbs: [get, list, watch]
- apiGroups: [contextstore.dev]
  resources: [contextclusters/status, contextpolicies/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [secrets, services, serviceaccounts]
  verbs: [get, create, patch]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, delete]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, patch, delete]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, create, patch, delete]
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors, prometheusrules]
  verbs: [get, create, patch, delete]
- apiGroups: [cert-manager.io]
  resources: [certificates]
  verbs: [get, create, patch]
{{- end }}
