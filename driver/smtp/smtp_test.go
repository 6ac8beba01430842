package smtp

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/alert"
)

// A server takes one message, as any mail server does.
type server struct {
	listener net.Listener
	config   *tls.Config // nil: it knows no STARTTLS
	implicit bool        // TLS from the start
	refuse   string      // a command that it says no to

	secure, authenticated bool
	commands              []string
	text                  string
	done                  chan struct{}
}

func newServer(t *testing.T, s *server) (*server, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	if s.config != nil {
		s.config.Certificates = []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
	}
	if s.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	s.done = make(chan struct{})
	go func() {
		defer close(s.done)
		if conn, err := s.listener.Accept(); err == nil {
			s.talk(conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() { s.listener.Close(); <-s.done })
	return s, pool
}

func (s *server) talk(conn net.Conn) {
	if s.implicit {
		conn, s.secure = tls.Server(conn, s.config), true
	}
	in := bufio.NewReader(conn)
	say := func(line string) { fmt.Fprint(conn, line+"\r\n") }
	say("220 here")
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimSpace(line)
		verb, _, _ := strings.Cut(line, " ")
		s.commands = append(s.commands, line)
		switch {
		case verb == s.refuse:
			say("550 no")
		case verb == "EHLO" && s.config != nil && !s.secure:
			say("250-here\r\n250-STARTTLS\r\n250 AUTH PLAIN")
		case verb == "EHLO":
			say("250-here\r\n250 AUTH PLAIN")
		case verb == "STARTTLS":
			say("220 go")
			conn, s.secure = tls.Server(conn, s.config), true
			in = bufio.NewReader(conn)
		case verb == "AUTH":
			s.authenticated = true
			say("235 ok")
		case verb == "DATA":
			say("354 go")
			for {
				line, err := in.ReadString('\n')
				if err != nil || line == ".\r\n" {
					break
				}
				s.text += line
			}
			say("250 taken")
		case verb == "QUIT":
			say("221 bye")
			return
		default:
			say("250 ok")
		}
	}
}

var notice = alert.Notice{ID: resource.MustID("01900000-0000-7000-8000-000000000001"), Event: "raised", Rule: "host-lost",
	Subject: "nöde\r\nBcc: everybody@example.org", Text: "Words = with ünusual letters.\n.\nand a dot", Severity: alert.Critical, Raised: time.Unix(1e9, 0), Cloud: "here"}

func target(s *server, scheme string) *alert.Target {
	return &alert.Target{Server: scheme + "://" + s.listener.Addr().String(), From: "unkai@example.org", To: []string{"a@example.org", "b@example.org"},
		Username: "u", Password: "p"}
}

func TestANoticeIsMailed(t *testing.T) {
	for name, c := range map[string]struct {
		scheme string
		server server
		secure bool
	}{
		"with STARTTLS":                              {"smtp", server{config: &tls.Config{}}, true},
		"with TLS from the start":                    {"smtps", server{config: &tls.Config{}, implicit: true}, true},
		"in the clear, on this machine and no other": {"smtp", server{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s, pool := newServer(t, &c.server)
			if err := (&Sender{TLS: &tls.Config{RootCAs: pool}}).Send(t.Context(), target(s, c.scheme), notice); err != nil {
				t.Fatal(err)
			}
			<-s.done
			if s.secure != c.secure || !s.authenticated {
				t.Errorf("secure: %v, authenticated: %v", s.secure, s.authenticated)
			}
			commands := strings.Join(s.commands, "\n")
			for _, want := range []string{"MAIL FROM:<unkai@example.org>", "RCPT TO:<a@example.org>", "RCPT TO:<b@example.org>"} {
				if !strings.Contains(commands, want) {
					t.Errorf("it was not told %s, but\n%s", want, commands)
				}
			}
			m, err := mail.ReadMessage(strings.NewReader(s.text))
			if err != nil {
				t.Fatal(err)
			}
			subject, err := new(mime.WordDecoder).DecodeHeader(m.Header.Get("Subject"))
			if err != nil || !strings.HasPrefix(subject, "[unkai] raised: host-lost nöde") || m.Header.Get("Bcc") != "" {
				t.Errorf("its headers are %v, %v", m.Header, err)
			}
			body, err := io.ReadAll(quotedprintable.NewReader(m.Body))
			if err != nil || !strings.Contains(string(body), "Words = with ünusual letters.") || !strings.Contains(string(body), "and a dot") {
				t.Errorf("it says %q, %v", body, err)
			}
		})
	}
}

func TestWhatIsNotMailed(t *testing.T) {
	for refuse, want := range map[string]string{"MAIL": "refuses the sender", "RCPT": "refuses a@example.org", "DATA": "did not take", "AUTH": "log in"} {
		s, pool := newServer(t, &server{config: &tls.Config{}, refuse: refuse})
		err := (&Sender{TLS: &tls.Config{RootCAs: pool}}).Send(t.Context(), target(s, "smtp"), notice)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is refused: %v", refuse, err)
		}
	}
	s, _ := newServer(t, &server{config: &tls.Config{}})
	if err := new(Sender).Send(t.Context(), target(s, "smtp"), notice); err == nil || !strings.Contains(err.Error(), "begin TLS") || s.authenticated {
		t.Errorf("a certificate that nobody trusts: %v", err)
	}
}
