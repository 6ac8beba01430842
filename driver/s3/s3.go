// Package s3 writes a stream to an object of an S3 bucket, and reads it back. Any service with Amazon's API and Signature V4 will do.
package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

const (
	scheme = "s3://"

	partBytes   = 64 << 20 // held in memory while a stream is written
	mostParts   = 10_000   // of one object, as services will have it: 625 GiB
	abortWithin = 10 * time.Second
)

// Options say which service it is; what is empty is Amazon's.
type Options struct {
	Endpoint string // https://HOST[:PORT]
	Region   string
	Insecure bool // plain http beyond loopback too
}

// An Object is what one address names. It need not be there yet.
type Object struct {
	client      *minio.Client
	credentials *credentials.Credentials
	bucket, key string
	endpoint    string
}

// Names says whether a text is the address of an object: s3://BUCKET/KEY.
func Names(text string) bool { return strings.HasPrefix(text, scheme) }

// Open reads an address. Nothing is asked of the service yet. Who asks is told as to any client of Amazon's: by AWS_ACCESS_KEY_ID and
// AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), or by AWS_PROFILE in ~/.aws/credentials, or on one of Amazon's machines by its role.
func Open(address string, o Options) (*Object, error) {
	bucket, key, _ := strings.Cut(strings.TrimPrefix(address, scheme), "/")
	if !Names(address) || bucket == "" || key == "" || strings.HasSuffix(key, "/") {
		return nil, fmt.Errorf("%s is no address of an object: s3://BUCKET/KEY is", address)
	}
	known := []credentials.Provider{&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}}
	if o.Endpoint == "" {
		o.Endpoint = "https://s3.amazonaws.com"
		known = append(known, &credentials.IAM{})
	} else if o.Region == "" {
		o.Region = "us-east-1" // what services say that have no regions; Amazon's own is asked
	}
	u, err := url.Parse(o.Endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("%s is no endpoint: https://HOST[:PORT] is", o.Endpoint)
	}
	if u.Scheme == "http" && !o.Insecure && !loopback(u.Hostname()) {
		return nil, fmt.Errorf("%s would carry a backup's secrets across a network unprotected", o.Endpoint)
	}
	who := credentials.NewChainCredentials(known)
	client, err := minio.New(u.Host, &minio.Options{Creds: who, Secure: u.Scheme == "https", Region: o.Region, MaxRetries: 5})
	if err != nil {
		return nil, fmt.Errorf("use %s: %w", o.Endpoint, err)
	}
	return &Object{client, who, bucket, key, u.Host}, nil
}

func loopback(name string) bool {
	at, err := netip.ParseAddr(name)
	return name == "localhost" || err == nil && at.IsLoopback()
}

// String is the object's address.
func (o *Object) String() string { return scheme + o.bucket + "/" + o.key }

// Put writes all of a stream, or nothing: an object that is there already is left alone, and one that was not written to its
// end never appears. It tells how many bytes there were.
func (o *Object) Put(ctx context.Context, r io.Reader) (int64, error) {
	if err := o.identified(ctx); err != nil {
		return 0, err
	}
	switch _, err := o.client.StatObject(ctx, o.bucket, o.key, minio.StatObjectOptions{}); {
	case err == nil:
		return 0, fmt.Errorf("%s is there already", o)
	case minio.ToErrorResponse(err).StatusCode != http.StatusNotFound:
		return 0, o.explain(err)
	}
	core := minio.Core{Client: o.client}
	upload, err := core.NewMultipartUpload(ctx, o.bucket, o.key, minio.PutObjectOptions{ContentType: "application/octet-stream"})
	if err != nil {
		return 0, o.explain(err)
	}
	parts, n, err := o.putParts(ctx, core, upload, r)
	if err == nil {
		var only minio.PutObjectOptions
		only.SetMatchETagExcept("*") // should it have come into being meanwhile; services that do not know the condition ignore it
		if _, err = core.CompleteMultipartUpload(ctx, o.bucket, o.key, upload, parts, only); err == nil {
			return n, nil
		}
		err = o.explain(err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortWithin)
	defer cancel()
	if abort := core.AbortMultipartUpload(ctx, o.bucket, o.key, upload); abort != nil {
		err = errors.Join(err, fmt.Errorf("what was sent is kept by the service as upload %s: %w", upload, abort))
	}
	return 0, err
}

// putParts sends a stream part by part. Each is signed as a whole: not every service knows signatures of pieces.
func (o *Object) putParts(ctx context.Context, core minio.Core, upload string, r io.Reader) (parts []minio.CompletePart, n int64, err error) {
	buffer := make([]byte, partBytes)
	for last := false; !last; {
		size, err := io.ReadFull(r, buffer)
		switch last = err == io.EOF || err == io.ErrUnexpectedEOF; {
		case err != nil && !last:
			return nil, 0, err
		case size == 0 && len(parts) > 0:
			continue
		case len(parts) == mostParts:
			return nil, 0, fmt.Errorf("%s would have more than %d bytes", o, n)
		}
		sum := sha256.Sum256(buffer[:size])
		part, err := core.PutObjectPart(ctx, o.bucket, o.key, upload, len(parts)+1, bytes.NewReader(buffer[:size]), int64(size),
			minio.PutObjectPartOptions{Sha256Hex: hex.EncodeToString(sum[:]), DisableContentSha256: true})
		if err != nil {
			return nil, 0, o.explain(err)
		}
		parts = append(parts, minio.CompletePart{PartNumber: part.PartNumber, ETag: part.ETag})
		n += int64(size)
	}
	return parts, n, nil
}

// Get reads the object from its beginning.
func (o *Object) Get(ctx context.Context) (io.ReadCloser, error) {
	if err := o.identified(ctx); err != nil {
		return nil, err
	}
	// What reads by ranges may see two objects, if it is replaced meanwhile; this is one answer.
	body, _, _, err := minio.Core{Client: o.client}.GetObject(ctx, o.bucket, o.key, minio.GetObjectOptions{})
	if err != nil {
		return nil, o.explain(err)
	}
	return body, nil
}

// identified says that there is somebody to ask as: without, every service answers that access is denied, which helps nobody.
func (o *Object) identified(ctx context.Context) error {
	who, err := o.credentials.GetWithContext(&credentials.CredContext{Client: &http.Client{Timeout: 5 * time.Second}})
	if err := ctx.Err(); err != nil {
		return err
	}
	if err == nil && who.AccessKeyID == "" {
		err = errors.New("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")
	}
	if err != nil {
		return fmt.Errorf("there are no credentials for %s: %w", o, err)
	}
	return nil
}

func (o *Object) explain(err error) error {
	switch answer := minio.ToErrorResponse(err); {
	case answer.StatusCode == http.StatusPreconditionFailed:
		return fmt.Errorf("%s is there already", o)
	case answer.Code == minio.NoSuchBucket:
		return fmt.Errorf("there is no bucket %s at %s", o.bucket, o.endpoint)
	case answer.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%s is not there", o)
	case answer.StatusCode == http.StatusForbidden:
		return fmt.Errorf("%s lets these credentials do nothing with %s (%s)", o.endpoint, o, answer.Code)
	default:
		return fmt.Errorf("%s: %w", o, err)
	}
}
