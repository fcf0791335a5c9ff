package main

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/skep-dev/skep/functions/inputs"
	"github.com/skep-dev/skep/internal/testenv"
)

// TestServesInputs gets an input with the key, by AWS's client, is refused
// without it, and ends the server.
func TestServesInputs(t *testing.T) {
	t.Chdir(t.TempDir()) // the server moves away; this brings the test back
	address := testenv.FreeAddress(t)
	dir := t.TempDir()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, address, dir, "") }()

	url := "http://" + address
	client := s3.New(s3.Options{BaseEndpoint: &url, Region: region, UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(key, key, "")})
	var got []byte
	var err error
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		var out *s3.GetObjectOutput
		out, err = client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String(inputs.Bucket), Key: aws.String("image_rotate/1.jpg")})
		if err == nil {
			got, err = io.ReadAll(out.Body)
			out.Body.Close()
		}
		if err == nil || time.Now().After(end) {
			break
		}
	}
	want, _ := os.ReadFile(filepath.Join(dir, inputs.Bucket, "image_rotate", "1.jpg"))
	if err != nil || len(got) == 0 || string(got) != string(want) {
		t.Errorf("got %d bytes of %d, %v", len(got), len(want), err)
	}
	if resp, err := http.Get(url + "/" + inputs.Bucket + "/image_rotate/1.jpg"); err != nil {
		t.Error(err)
	} else {
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("without a key: %s", resp.Status)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("the server's end: %v", err)
	}
}
