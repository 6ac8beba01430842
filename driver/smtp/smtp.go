// Package smtp tells alerts by e-mail. What is said and when it is said again is core/alert's business.
package smtp

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/netip"
	"net/smtp"
	"net/url"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/core/alert"
)

// Sender mails notices. Beyond this machine nothing is said without TLS.
type Sender struct {
	TLS *tls.Config // what certificates are trusted, for tests; the machine's when nil
}

var _ alert.Sender = (*Sender)(nil)

// Send mails one notice to all of a target's addresses. It has arrived when the server has taken it.
func (s *Sender) Send(ctx context.Context, t *alert.Target, n alert.Notice) (err error) {
	at, err := url.Parse(t.Server)
	if err != nil {
		return fmt.Errorf("the mail server's address: %w", err)
	}
	c, err := s.dial(ctx, at)
	if err != nil {
		return fmt.Errorf("reach the mail server %s: %w", at.Host, err)
	}
	defer c.Close()
	if err := s.secure(c, at); err != nil {
		return err
	}
	if t.Username != "" {
		if err := c.Auth(smtp.PlainAuth("", t.Username, t.Password, at.Hostname())); err != nil {
			return fmt.Errorf("log in at the mail server %s: %w", at.Host, err)
		}
	}
	if err := c.Mail(t.From); err != nil {
		return fmt.Errorf("the mail server refuses the sender %s: %w", t.From, err)
	}
	for _, to := range t.To {
		if err := c.Rcpt(to); err != nil {
			return fmt.Errorf("the mail server refuses %s: %w", to, err)
		}
	}
	w, err := c.Data()
	if err == nil {
		_, err = w.Write(letter(t, n))
		err = errors.Join(err, w.Close())
	}
	if err != nil {
		return fmt.Errorf("the mail server did not take the message: %w", err)
	}
	if err := c.Quit(); err != nil {
		return nil // it has it
	}
	return nil
}

func (s *Sender) config(host string) *tls.Config {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.TLS != nil {
		config = s.TLS.Clone()
	}
	config.ServerName = host
	return config
}

func (s *Sender) dial(ctx context.Context, at *url.URL) (*smtp.Client, error) {
	address := at.Host
	if at.Port() == "" {
		address = net.JoinHostPort(at.Hostname(), map[string]string{"smtp": "587", "smtps": "465"}[at.Scheme])
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	if at.Scheme == "smtps" {
		conn = tls.Client(conn, s.config(at.Hostname()))
	}
	c, err := smtp.NewClient(conn, at.Hostname())
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return c, nil
}

// secure begins TLS where it has not begun.
func (s *Sender) secure(c *smtp.Client, at *url.URL) error {
	if at.Scheme == "smtps" {
		return nil
	}
	if ok, _ := c.Extension("STARTTLS"); ok {
		if err := c.StartTLS(s.config(at.Hostname())); err != nil {
			return fmt.Errorf("begin TLS with the mail server %s: %w", at.Host, err)
		}
		return nil
	}
	if ip, err := netip.ParseAddr(at.Hostname()); at.Hostname() == "localhost" || err == nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("the mail server %s does not offer STARTTLS, and nothing is mailed in the clear", at.Host)
}

// letter is the message: headers without a tenant's or a host's line ends, and a body that survives any server.
func letter(t *alert.Target, n alert.Notice) []byte {
	var b bytes.Buffer
	header := func(name, value string) {
		fmt.Fprintf(&b, "%s: %s\r\n", name, strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f {
				return ' '
			}
			return r
		}, value))
	}
	at := n.Raised
	if !n.Resolved.IsZero() {
		at = n.Resolved
	}
	header("From", "Unkai <"+t.From+">")
	header("To", strings.Join(t.To, ", "))
	header("Subject", mime.QEncoding.Encode("utf-8", n.Title()))
	header("Date", at.UTC().Format(time.RFC1123Z))
	header("Message-ID", "<"+n.ID.String()+"."+n.Event+"@unkai>")
	header("Auto-Submitted", "auto-generated")
	header("MIME-Version", "1.0")
	header("Content-Type", "text/plain; charset=utf-8")
	header("Content-Transfer-Encoding", "quoted-printable")
	b.WriteString("\r\n")
	body := quotedprintable.NewWriter(&b)
	fmt.Fprintf(body, "%s\r\n\r\nseverity  %s\r\nraised    %s\r\n", n.Text, n.Severity, n.Raised.UTC().Format(time.RFC3339))
	if !n.Resolved.IsZero() {
		fmt.Fprintf(body, "resolved  %s\r\n", n.Resolved.UTC().Format(time.RFC3339))
	}
	fmt.Fprintf(body, "cloud     %s\r\n", n.Cloud)
	body.Close() // into memory
	return b.Bytes()
}
