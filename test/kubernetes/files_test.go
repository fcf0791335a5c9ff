package kubernetes

import (
	"regexp"
	"strings"
	"testing"
)

// Config maps, secrets, the service account's token and the downward API are there in
// the guest, and config maps and secrets follow when they change.
func TestFiles(t *testing.T) {
	n := onNodeOfAll(t)
	objects := `
apiVersion: v1
kind: ConfigMap
metadata: {name: told}
data: {level: first, greeting: hello}
---
apiVersion: v1
kind: Secret
metadata: {name: told}
stringData: {key: sesame}
---
`
	n.apply(objects + pod("told", map[string]string{"note": "seen"}, `
env:
- {name: LEVEL, valueFrom: {configMapKeyRef: {name: told, key: level}}}
- {name: KEY, valueFrom: {secretKeyRef: {name: told, key: key}}}
- {name: ADDRESS, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
resources: {limits: {memory: 128Mi, cpu: "1"}}
volumeMounts:
- {name: config, mountPath: /config}
- {name: secret, mountPath: /secret}
- {name: pod, mountPath: /pod}
- {name: scratch, mountPath: /scratch}
- {name: small, mountPath: /small}
`, "serve", "8080") + `
  volumes:
  - {name: config, configMap: {name: told}}
  - {name: secret, secret: {secretName: told}}
  - {name: scratch, emptyDir: {}}
  - {name: small, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
  - name: pod
    downwardAPI:
      items:
      - {path: annotations, fieldRef: {fieldPath: metadata.annotations}}
      - {path: memory, resourceFieldRef: {containerName: app, resource: limits.memory}}
`)
	n.ready("told")
	url := "http://" + n.get("pod/told", ".status.podIP") + ":8080"
	for path, want := range map[string]string{
		"/env/LEVEL": "first", "/env/KEY": "sesame", "/env/ADDRESS": n.get("pod/told", ".status.podIP"),
		"/file/config/level": "first", "/file/config/greeting": "hello", "/file/secret/key": "sesame", "/file/pod/memory": "134217728",
		"/file/var/run/secrets/kubernetes.io/serviceaccount/namespace": "default",
	} {
		n.answers(url+path, want)
	}
	client := n.client()
	for path, want := range map[string]string{
		"/file/pod/annotations": `note="seen"`, "/file/var/run/secrets/kubernetes.io/serviceaccount/ca.crt": "BEGIN CERTIFICATE", "/file/etc/resolv.conf": "nameserver 10.96.0.10",
		"/file/etc/hosts": "told",
	} {
		if out, err := fetch(client, url+path); err != nil || !strings.Contains(out, want) {
			t.Errorf("%s has %q, %v: want %q", path, out, err, want)
		}
	}
	// The token is one that the API server takes.
	token, err := fetch(client, url+"/file/var/run/secrets/kubernetes.io/serviceaccount/token")
	if err != nil {
		t.Fatal(err)
	}
	if out := n.kubectl("--token="+token, "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"); out != "system:serviceaccount:default:default" && out != "kubernetes-admin" {
		t.Errorf("by its token it is %q", out)
	}
	n.change(strings.NewReplacer("first", "second", "sesame", "barley").Replace(strings.TrimSuffix(objects, "---\n")))
	n.answers(url+"/file/config/level", "second")
	n.answers(url+"/file/secret/key", "barley")
	n.answers(url+"/env/LEVEL", "first") // which no runtime changes
	if out := n.kubectl("exec", "told", "--", "/bin/mounts"); !regexp.MustCompile(`(?m)^\S+ /small tmpfs \S*\bsize=8192k\b`).MatchString(out) {
		t.Errorf("its emptyDir is not of the size that it is limited to:\n%s", out)
	}
	n.kubectl("exec", "told", "--", "/bin/write", "/scratch/x", "kept")
	n.answers(url+"/file/scratch/x", "kept")
}
