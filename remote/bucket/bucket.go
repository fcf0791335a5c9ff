// Package bucket is a bucket of an S3-compatible object store as package remote
// uses it, by AWS's own client. Programs that have a store configured open one; nothing
// else pulls that client in.
//
// Credentials are found where AWS's programs look for them: the environment, the shared
// files and their profiles, web identity, the container's or the machine's role. They are
// neither kept nor logged.
package bucket

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/skep-dev/skep/remote"
)

// Options of Open. Name is needed.
type Options struct {
	Name string
	// Endpoints are URLs of the same store; where one does not answer the next is asked.
	// None: AWS's own of the region.
	Endpoints []string
	Region    string // default: AWS_REGION, the profile's, or us-east-1
	// Timeout bounds the wait for a connection, for an answer to begin and for each
	// next part of it; default 10 s.
	Timeout time.Duration
	// Tries of each request at each endpoint, with jittered waits between; default 3.
	Tries int
}

// Bucket is one in an object store.
type Bucket struct {
	name    string
	timeout time.Duration
	clients []*s3.Client
	good    atomic.Int32 // index of the endpoint that answered last
	close   func()
}

var _ remote.Bucket = (*Bucket)(nil)

// Open finds the credentials; the store itself is not asked for anything yet.
func Open(ctx context.Context, o Options) (*Bucket, error) {
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Tries == 0 {
		o.Tries = 3
	}
	client := awshttp.NewBuildableClient().
		WithDialerOptions(func(d *net.Dialer) { d.Timeout = o.Timeout }).
		WithTransportOptions(func(t *http.Transport) {
			t.ResponseHeaderTimeout, t.TLSHandshakeTimeout = o.Timeout, o.Timeout
			t.MaxIdleConnsPerHost, t.MaxConnsPerHost = 64, 64
			t.DisableCompression = true
		})
	cfg, err := config.LoadDefaultConfig(ctx, config.WithHTTPClient(client),
		config.WithRetryMaxAttempts(o.Tries), func(l *config.LoadOptions) error {
			l.DefaultRegion = "us-east-1"
			l.Region = o.Region
			return nil
		})
	if err != nil {
		return nil, fmt.Errorf("opening bucket %s: %w", o.Name, err)
	}
	// The SDK's client hides its connections: what it would make of its options is made here, to be closed.
	buildable, ok := cfg.HTTPClient.(*awshttp.BuildableClient)
	if !ok {
		return nil, fmt.Errorf("opening bucket %s: the SDK has replaced its client by a %T", o.Name, cfg.HTTPClient)
	}
	transport := buildable.GetTransport()
	cfg.HTTPClient = &http.Client{Transport: transport, CheckRedirect: onlyRepeated}
	// Only what every S3-compatible store knows: no checksums in trailers.
	cfg.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
	cfg.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	b := &Bucket{name: o.Name, timeout: o.Timeout, close: transport.CloseIdleConnections}
	for _, e := range o.Endpoints {
		if u, err := url.Parse(e); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return nil, fmt.Errorf("opening bucket %s: endpoint %q: want a URL such as http://127.0.0.1:9000", o.Name, e)
		}
		b.clients = append(b.clients, s3.NewFromConfig(cfg, func(s *s3.Options) { s.BaseEndpoint, s.UsePathStyle = &e, true }))
	}
	if len(o.Endpoints) == 0 {
		b.clients = []*s3.Client{s3.NewFromConfig(cfg)}
	}
	return b, nil
}

// onlyRepeated follows redirections that say the same request is to be made elsewhere, as the SDK's client does.
func onlyRepeated(r *http.Request, _ []*http.Request) error {
	if r.Response == nil {
		return nil
	}
	switch r.Response.StatusCode {
	case http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return nil
	}
	return http.ErrUseLastResponse
}

// Close drops idle connections.
func (b *Bucket) Close() { b.close() }

// try does something at the endpoint that answered last, and then at the others where it
// does not answer.
func (b *Bucket) try(ctx context.Context, what, key string, do func(c *s3.Client) error) error {
	var errs []error
	first := int(b.good.Load())
	for i := range b.clients {
		at := (first + i) % len(b.clients)
		err := do(b.clients[at])
		if err == nil {
			b.good.Store(int32(at))
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, remote.ErrFormat) {
			return fmt.Errorf("%s %s in bucket %s: %w", what, key, b.name, err)
		}
		if status(err) == http.StatusNotFound && !noBucket(err) {
			return fmt.Errorf("%s in bucket %s: %w", key, b.name, remote.ErrNotThere)
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("%s %s in bucket %s: %w: %w", what, key, b.name, remote.ErrUnavailable, errors.Join(errs...))
}

func status(err error) int {
	var r *awshttp.ResponseError
	if errors.As(err, &r) {
		return r.HTTPStatusCode()
	}
	return 0
}

func noBucket(err error) bool {
	var api interface{ ErrorCode() string }
	return errors.As(err, &api) && api.ErrorCode() == "NoSuchBucket"
}

// Get implements remote.Bucket.
func (b *Bucket) Get(ctx context.Context, key string, limit int64) (data []byte, err error) {
	err = b.try(ctx, "reading", key, func(c *s3.Client) error {
		return b.get(ctx, c, key, "", func(length int64, body io.Reader) error {
			if length > limit {
				return tooLong(length, limit)
			}
			var buf bytes.Buffer
			if n, err := buf.ReadFrom(io.LimitReader(body, limit+1)); err != nil {
				return err
			} else if n > limit {
				return tooLong(n, limit)
			}
			data = buf.Bytes()
			return nil
		})
	})
	return data, err
}

func tooLong(n, limit int64) error {
	return fmt.Errorf("it has %d bytes, %d are allowed: %w", n, limit, remote.ErrFormat)
}

// ReadAt implements remote.Bucket.
func (b *Bucket) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	return b.try(ctx, "reading", key, func(c *s3.Client) error {
		err := b.get(ctx, c, key, fmt.Sprintf("bytes=%d-%d", off, off+int64(len(p))-1), func(length int64, body io.Reader) error {
			if length >= 0 && length < int64(len(p)) {
				return short(off, len(p))
			}
			_, err := io.ReadFull(body, p)
			return err
		})
		if status(err) == http.StatusRequestedRangeNotSatisfiable {
			return short(off, len(p))
		}
		return err
	})
}

func short(off int64, n int) error {
	return fmt.Errorf("it ends before byte %d: %w", off+int64(n), remote.ErrFormat)
}

// bodyTries is how often an answer that broke off is asked for again.
const bodyTries = 2

// get asks for an object, or a range of it. What breaks off on the way is asked for again; the client
// retries only what has not begun to be answered.
func (b *Bucket) get(ctx context.Context, c *s3.Client, key, byteRange string, read func(length int64, body io.Reader) error) error {
	in := &s3.GetObjectInput{Bucket: &b.name, Key: &key}
	if byteRange != "" {
		in.Range = &byteRange
	}
	var err error
	for range bodyTries {
		err = b.getOnce(ctx, c, in, read)
		if err == nil || ctx.Err() != nil || status(err) != 0 || errors.Is(err, remote.ErrFormat) {
			return err
		}
	}
	return err
}

func (b *Bucket) getOnce(ctx context.Context, c *s3.Client, in *s3.GetObjectInput, read func(length int64, body io.Reader) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out, err := c.GetObject(ctx, in)
	if err != nil {
		return err
	}
	defer out.Body.Close()
	length := int64(-1)
	if out.ContentLength != nil {
		length = *out.ContentLength
	}
	stalled := time.AfterFunc(b.timeout, func() { cancel(fmt.Errorf("no byte came for %v", b.timeout)) })
	defer stalled.Stop()
	err = read(length, &progressing{out.Body, stalled, b.timeout})
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// progressing puts a timer off for as long as bytes come.
type progressing struct {
	r       io.Reader
	stalled *time.Timer
	limit   time.Duration
}

func (p *progressing) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if n > 0 {
		p.stalled.Reset(p.limit)
	}
	return n, err
}

// slowest is the rate at which an upload is given up, in bytes a second.
const slowest = 128 << 10

// Put implements remote.Bucket.
func (b *Bucket) Put(ctx context.Context, key string, data []byte) error {
	// The client has no bound for a server that stops reading.
	ctx, cancel := context.WithTimeoutCause(ctx, time.Duration(len(b.clients))*(6*b.timeout+time.Duration(len(data)/slowest)*time.Second), errors.New("the store takes it too slowly"))
	defer cancel()
	return b.try(ctx, "writing", key, func(c *s3.Client) error {
		_, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: &b.name, Key: &key, Body: bytes.NewReader(data)})
		return err
	})
}

// List implements remote.Bucket.
func (b *Bucket) List(ctx context.Context, prefix string) iter.Seq2[remote.Object, error] {
	return func(yield func(remote.Object, error) bool) {
		in := &s3.ListObjectsV2Input{Bucket: &b.name, Prefix: &prefix}
		for {
			var out *s3.ListObjectsV2Output
			err := b.try(ctx, "listing", prefix, func(c *s3.Client) (err error) {
				out, err = c.ListObjectsV2(ctx, in)
				return err
			})
			if err != nil {
				yield(remote.Object{}, err)
				return
			}
			for _, o := range out.Contents {
				if !yield(remote.Object{Key: aws.ToString(o.Key), Size: aws.ToInt64(o.Size), Modified: aws.ToTime(o.LastModified)}, nil) {
					return
				}
			}
			if !aws.ToBool(out.IsTruncated) || aws.ToString(out.NextContinuationToken) == "" {
				return
			}
			in.ContinuationToken = out.NextContinuationToken
		}
	}
}

// Delete implements remote.Bucket.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	err := b.try(ctx, "deleting", key, func(c *s3.Client) error {
		_, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.name, Key: &key})
		return err
	})
	if errors.Is(err, remote.ErrNotThere) {
		return nil // some stores say so
	}
	return err
}
