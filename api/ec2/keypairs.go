package ec2

import (
	"encoding/base64"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

type keyPair struct {
	ID          string `xml:"keyPairId"`
	Name        string `xml:"keyName"`
	Fingerprint string `xml:"keyFingerprint"`
	Type        string `xml:"keyType,omitempty"`
	Created     string `xml:"createTime,omitempty"`
	Public      string `xml:"publicKey,omitempty"`
	Material    string `xml:"keyMaterial,omitempty"`
}

func keyPairOf(k *compute.KeyPair) keyPair {
	return keyPair{ID: idOf("key", k.ID), Name: k.Name, Fingerprint: k.Fingerprint, Type: keyType(k.Public), Created: k.CreatedAt.UTC().Format(timeFormat)}
}

// keyType is EC2's word where it has one ("KeyType": rsa or ed25519), and the algorithm's own elsewhere.
func keyType(public string) string {
	algorithm, _, _ := strings.Cut(public, " ")
	switch algorithm {
	case ssh.KeyAlgoRSA:
		return "rsa"
	case ssh.KeyAlgoED25519:
		return "ed25519"
	}
	return algorithm
}

func noKey(name string) error {
	return refuse("InvalidKeyPair.NotFound", "The key pair '%s' does not exist", printable(name))
}

// keyProblem words what is wrong with a key as EC2 does.
func keyProblem(err error, name string) error {
	p := fault.From(err)
	if p == nil {
		return err
	}
	switch p.Code {
	case "keypair-not-found":
		return noKey(name)
	case "keypair-name-taken":
		return refuse("InvalidKeyPair.Duplicate", "The keypair '%s' already exists.", printable(name))
	case "keypair-invalid":
		return refuse("InvalidKey.Format", "Key is not in valid OpenSSH public key format")
	}
	return err
}

func (s *Server) describeKeyPairs(c *call) (any, error) {
	filters, err := c.filters(known("key-name fingerprint key-pair-id"))
	if err != nil {
		return nil, err
	}
	public, err := c.in.bool("IncludePublicKey")
	if err != nil {
		return nil, err
	}
	listed, err := s.Compute.ListKeyPairs(c.ctx, c.actor.UserID, 0, "")
	if err != nil {
		return nil, err
	}
	names, ids := c.in.texts("KeyName"), c.in.texts("KeyPairId")
	for _, name := range names {
		if !slices.ContainsFunc(listed.Items, func(k *compute.KeyPair) bool { return k.Name == name }) {
			return nil, noKey(name)
		}
	}
	for _, id := range ids {
		if !slices.ContainsFunc(listed.Items, func(k *compute.KeyPair) bool { return idOf("key", k.ID) == id }) {
			return nil, noKey(id)
		}
	}
	var answer struct {
		Keys set[keyPair] `xml:"keySet"`
	}
	for _, k := range listed.Items {
		item := keyPairOf(k)
		if !wanted(names, k.Name) || !wanted(ids, item.ID) ||
			!keeps(filters, facts{"key-name": {k.Name}, "fingerprint": {k.Fingerprint}, "key-pair-id": {item.ID}}, nil) {
			continue
		}
		if public {
			item.Public = k.Public
		}
		answer.Keys.Items = append(answer.Keys.Items, item)
	}
	return answer, nil
}

// createKeyPair makes a key here; its private half is in the answer and nowhere else.
func (s *Server) createKeyPair(c *call) (any, error) {
	name, err := c.in.must("KeyName")
	if err != nil {
		return nil, err
	}
	kind := c.in.text("KeyType")
	if kind != "" && kind != compute.RSA && kind != compute.Ed25519 {
		return nil, refuse("InvalidParameterValue", "Value (%s) for parameter KeyType is invalid.", printable(kind))
	}
	if format := c.in.text("KeyFormat"); format != "" && format != "pem" {
		return nil, refuse("UnsupportedOperation", "Only the key format pem is supported here.")
	}
	public, private, err := compute.GenerateKey("ssh", kind, "")
	if err != nil {
		return nil, err
	}
	made, err := s.Compute.ImportKeyPair(c.ctx, compute.KeyPair{Meta: resource.Meta{Name: name}, Public: public})
	if err != nil {
		return nil, keyProblem(err, name)
	}
	item := keyPairOf(made)
	item.Created = ""
	// A request that came before gets the key that it made then, whose private half is no longer known.
	if made.Public == public {
		item.Material = private
	}
	return item, nil
}

func (s *Server) importKeyPair(c *call) (any, error) {
	name, err := c.in.must("KeyName")
	if err != nil {
		return nil, err
	}
	material, err := c.in.must("PublicKeyMaterial")
	if err != nil {
		return nil, err
	}
	text, err := base64.StdEncoding.DecodeString(material)
	if err != nil {
		return nil, refuse("InvalidKey.Format", "Key is not in valid OpenSSH public key format")
	}
	made, err := s.Compute.ImportKeyPair(c.ctx, compute.KeyPair{Meta: resource.Meta{Name: name}, Public: strings.TrimSpace(string(text))})
	if err != nil {
		return nil, keyProblem(err, name)
	}
	item := keyPairOf(made)
	item.Created = ""
	return item, nil
}

// deleteKeyPair: to delete what is not there is no error in EC2.
func (s *Server) deleteKeyPair(c *call) (any, error) {
	name, id := c.in.text("KeyName"), c.in.text("KeyPairId")
	switch {
	case name == "" && id == "":
		return nil, refuse("MissingParameter", "The request must contain the parameter KeyName or KeyPairId")
	case name != "" && id != "":
		return nil, refuse("InvalidParameterCombination", "The parameters KeyName and KeyPairId cannot be used together")
	case id != "":
		listed, err := s.Compute.ListKeyPairs(c.ctx, c.actor.UserID, 0, "")
		if err != nil {
			return nil, err
		}
		at := slices.IndexFunc(listed.Items, func(k *compute.KeyPair) bool { return idOf("key", k.ID) == id })
		if at < 0 {
			return done{Value: true}, nil
		}
		name = listed.Items[at].Name
	}
	err := s.Compute.DeleteKeyPair(c.ctx, c.actor.UserID, name)
	if fault.Is(err, fault.NotFound) {
		err = nil
	}
	return done{Value: true}, err
}
