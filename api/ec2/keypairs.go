package ec2

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

type keyPair struct {
	ID          string  `xml:"keyPairId"`
	Name        string  `xml:"keyName"`
	Fingerprint string  `xml:"keyFingerprint"`
	Type        string  `xml:"keyType,omitempty"`
	Created     string  `xml:"createTime,omitempty"`
	Public      string  `xml:"publicKey,omitempty"`
	Material    string  `xml:"keyMaterial,omitempty"`
	Tags        *tagSet `xml:"tagSet"`
}

func keyPairOf(k *compute.KeyPair) keyPair {
	kind := "rsa"
	if strings.HasPrefix(k.Public, ssh.KeyAlgoED25519) {
		kind = "ed25519"
	}
	return keyPair{ID: idOf("key", k.ID), Name: k.Name, Fingerprint: k.Fingerprint, Type: kind, Created: k.CreatedAt.UTC().Format(timeFormat)}
}

func (s *Server) describeKeyPairs(c *call) (any, error) {
	filters, err := c.filters(known("key-name", "fingerprint", "key-pair-id"))
	if err != nil {
		return nil, err
	}
	listed, err := s.Compute.ListKeyPairs(c.ctx, c.actor.UserID, 0, "")
	if err != nil {
		return nil, err
	}
	names, ids := c.list("KeyName"), c.list("KeyPairId")
	var items []keyPair
	for _, k := range listed.Items {
		item := keyPairOf(k)
		if c.form.Get("IncludePublicKey") == "true" {
			item.Public = k.Public
		}
		if len(names) > 0 && !slices.Contains(names, k.Name) || len(ids) > 0 && !slices.Contains(ids, item.ID) ||
			!keeps(filters, facts{"key-name": {k.Name}, "fingerprint": {k.Fingerprint}, "key-pair-id": {item.ID}}, nil) {
			continue
		}
		items = append(items, item)
	}
	for _, name := range names {
		if !slices.ContainsFunc(items, func(k keyPair) bool { return k.Name == name }) {
			return nil, refuse("InvalidKeyPair.NotFound", "The key pair '%s' does not exist", printable(name))
		}
	}
	return struct {
		Items []keyPair `xml:"keySet>item"`
	}{items}, nil
}

// createKeyPair makes a key here; its private half is in the answer and nowhere else.
func (s *Server) createKeyPair(c *call) (any, error) {
	if v := c.form.Get("KeyFormat"); v != "" && v != "pem" {
		return nil, refuse("UnsupportedOperation", "Only the key format pem is supported here.")
	}
	private, public, err := newKey(c.form.Get("KeyType"))
	if err != nil {
		return nil, err
	}
	made, err := s.Compute.ImportKeyPair(c.ctx, compute.KeyPair{Meta: resource.Meta{Name: c.form.Get("KeyName")}, Public: public})
	if err != nil {
		return nil, keyProblem(err, c.form.Get("KeyName"))
	}
	item := keyPairOf(made)
	item.Material = private
	return item, nil
}

func newKey(kind string) (private, public string, err error) {
	var signer any
	var block *pem.Block
	switch kind {
	case "", "rsa":
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return "", "", fmt.Errorf("make a key: %w", err)
		}
		signer, block = key.Public(), &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}
	case "ed25519":
		pub, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return "", "", fmt.Errorf("make a key: %w", err)
		}
		signer = pub
		if block, err = ssh.MarshalPrivateKey(key, ""); err != nil {
			return "", "", fmt.Errorf("spell a key: %w", err)
		}
	default:
		return "", "", refuse("InvalidParameterValue", "Value (%s) for parameter KeyType is invalid.", printable(kind))
	}
	line, err := ssh.NewPublicKey(signer)
	if err != nil {
		return "", "", fmt.Errorf("spell a key: %w", err)
	}
	return string(pem.EncodeToMemory(block)), strings.TrimSpace(string(ssh.MarshalAuthorizedKey(line))), nil
}

func (s *Server) importKeyPair(c *call) (any, error) {
	text, err := base64.StdEncoding.DecodeString(c.form.Get("PublicKeyMaterial"))
	if err != nil || len(text) == 0 {
		return nil, refuse("InvalidKey.Format", "Key is not in valid OpenSSH public key format")
	}
	made, err := s.Compute.ImportKeyPair(c.ctx, compute.KeyPair{Meta: resource.Meta{Name: c.form.Get("KeyName")}, Public: strings.TrimSpace(string(text))})
	if err != nil {
		return nil, keyProblem(err, c.form.Get("KeyName"))
	}
	return keyPairOf(made), nil
}

// keyProblem names what EC2 has own codes for.
func keyProblem(err error, name string) error {
	p := problemOf(err)
	switch {
	case name == "":
		return refuse("MissingParameter", "The request must contain the parameter KeyName")
	case p.code == "InvalidKeyPair.Duplicate" || strings.Contains(p.message, "already exists"):
		return refuse("InvalidKeyPair.Duplicate", "The keypair '%s' already exists.", printable(name))
	case strings.Contains(strings.ToLower(p.message), "key"):
		return refuse("InvalidKey.Format", "%s", p.message)
	}
	return err
}

// deleteKeyPair: to delete what is not there is no error in EC2.
func (s *Server) deleteKeyPair(c *call) (any, error) {
	name := c.form.Get("KeyName")
	if id := c.form.Get("KeyPairId"); id != "" && name == "" {
		listed, err := s.Compute.ListKeyPairs(c.ctx, c.actor.UserID, 0, "")
		if err != nil {
			return nil, err
		}
		for _, k := range listed.Items {
			if idOf("key", k.ID) == id {
				name = k.Name
			}
		}
	}
	if name == "" && c.form.Get("KeyPairId") == "" {
		return nil, refuse("MissingParameter", "The request must contain the parameter KeyName")
	}
	if err := s.Compute.DeleteKeyPair(c.ctx, c.actor.UserID, name); err != nil && problemOf(err).code != "InvalidKeyPair.NotFound" {
		return nil, err
	}
	return done{Value: true}, nil
}
