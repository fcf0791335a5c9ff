package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/skep-dev/skep/internal/atomicfile"
)

// certificate is one of the cluster's: pki/NAME.crt and pki/NAME.key.
type certificate struct {
	name   string
	ca     string // which signs it; "" for a CA
	common string
	org    []string
	server bool // for a server at the node's addresses; else for a client
}

// Names that Kubernetes gives rights by: system:masters may all, the others have the
// roles that the API server makes for them.
var certificates = []certificate{
	{name: "ca", common: "skep-cluster"},
	{name: "etcd-ca", common: "skep-cluster-etcd"},
	{name: "front-proxy-ca", common: "skep-cluster-front-proxy"},
	{name: "etcd", ca: "etcd-ca", common: "etcd", server: true},
	{name: "etcd-client", ca: "etcd-ca", common: "kube-apiserver"},
	{name: "apiserver", ca: "ca", common: "kube-apiserver", server: true},
	{name: "apiserver-kubelet", ca: "ca", common: "kube-apiserver-kubelet", org: []string{"system:masters"}},
	{name: "front-proxy", ca: "front-proxy-ca", common: "front-proxy-client"},
	{name: "kubelet", ca: "ca", common: "system:node:" + nodeName, org: []string{"system:nodes"}, server: true},
	{name: "admin", ca: "ca", common: "kubernetes-admin", org: []string{"system:masters"}},
	{name: "controller-manager", ca: "ca", common: "system:kube-controller-manager"},
	{name: "scheduler", ca: "ca", common: "system:kube-scheduler"},
	{name: "proxy", ca: "ca", common: "system:kube-proxy"},
}

// serviceAccounts is the name of the key that signs tokens.
const serviceAccounts = "service-accounts"

// writePKI makes the certificates and keys that are not there.
func (c *Cluster) writePKI() error {
	dir := c.path("pki")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, cert := range certificates {
		if err := cert.write(dir); err != nil {
			return fmt.Errorf("making certificate %s: %w", cert.name, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, serviceAccounts+".pub")); err == nil {
		return nil
	}
	key, err := newKey(filepath.Join(dir, serviceAccounts+".key"))
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	return writePEM(filepath.Join(dir, serviceAccounts+".pub"), "PUBLIC KEY", der)
}

func (c certificate) write(dir string) error {
	path := filepath.Join(dir, c.name+".crt")
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	key, err := newKey(filepath.Join(dir, c.name+".key"))
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: c.common, Organization: c.org},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(10, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if c.server {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		t.DNSNames = []string{"localhost", nodeName, "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
		t.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.ParseIP(nodeIP), net.ParseIP(serviceIP)}
	}
	issuer, signer := t, crypto.Signer(key)
	if c.ca == "" {
		t.IsCA, t.BasicConstraintsValid = true, true
		t.KeyUsage, t.ExtKeyUsage = x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature, nil
	} else if issuer, signer, err = readCA(dir, c.ca); err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, t, issuer, key.Public(), signer)
	if err != nil {
		return err
	}
	return writePEM(path, "CERTIFICATE", der) // last: with it both are there
}

func newKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, writePEM(path, "EC PRIVATE KEY", der)
}

func readCA(dir, name string) (*x509.Certificate, crypto.Signer, error) {
	der, err := readPEM(filepath.Join(dir, name+".crt"))
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	if der, err = readPEM(filepath.Join(dir, name+".key")); err != nil {
		return nil, nil, err
	}
	key, err := x509.ParseECPrivateKey(der)
	return cert, key, err
}

func readPEM(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s is not PEM: remove it, and it is made anew", path)
	}
	return block.Bytes, nil
}

func writePEM(path, kind string, der []byte) error {
	return atomicfile.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

// kubeconfig is the configuration of a client that the certificate of that name
// identifies.
func (c *Cluster) kubeconfig(name string) ([]byte, error) {
	data := map[string]string{"Server": fmt.Sprintf("https://127.0.0.1:%d", c.port)}
	for key, file := range map[string]string{"CA": "ca.crt", "Cert": name + ".crt", "Key": name + ".key"} {
		b, err := os.ReadFile(c.path("pki", file))
		if err != nil {
			return nil, err
		}
		data[key] = base64.StdEncoding.EncodeToString(b)
	}
	return render("kubeconfig.yaml", data)
}
