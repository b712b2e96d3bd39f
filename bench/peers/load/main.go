// One load for all that `bench/cluster.py` compares: so many connections, each with one write under way, for so many seconds. It is a closed
// loop; with a rate it is an open one, whose writes are due at fixed times, and take from then on, however long they waited to be sent.
//
// Knows how to write to each kind of store and how to time it; knows nothing of processes. Every connection is made, and has made one
// write, before time counts. Prints one JSON object. An answer that is no success is an error; a rate with errors is none. Only where writes
// have idempotency keys, one that is told to try again is tried again as a client would, which is counted.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// plan is what is to be done: targets[i] is asked by connections i, i+n, …, which write under keys[i] in turn.
type plan struct {
	Kind        string     `json:"kind"`
	Targets     []string   `json:"targets"`
	Keys        [][]string `json:"keys"`
	Body        string     `json:"body"`
	Batch       int        `json:"batch"`
	Connections int        `json:"connections"`
	Shared      int        `json:"shared"` // etcd: so many writers share a connection
	Seconds     float64    `json:"seconds"`
	Rate        float64    `json:"rate"`   // writes a second; 0 is a closed loop
	Writes      int64      `json:"writes"` // end after so many; 0 is when the seconds are over
	Times       bool       `json:"times"`  // tell each write's time
	Keyed       bool       `json:"keyed"`  // http: each write has an idempotency key, and is tried again where the answer is 503
}

type writer interface {
	// write makes one durable write (of a batch, if the plan has one) under a key.
	write(ctx context.Context, key string) error
}

// httpWriter speaks HTTP/1.1 on one kept connection, with bytes made ready beforehand: as little work as wrk does.
type httpWriter struct {
	conn     net.Conn
	reader   *bufio.Reader
	requests map[string][]byte
	numbers  map[string][]int
	keyed    bool
}

// number is where a body wants a number that no other message of this process has, and a header one that no other write has.
var number = []byte("##########")
var numbered, keysUsed, retried atomic.Int64

// keyHeader is that of this process: another's keys were for other writes.
var keyHeader = fmt.Sprintf("Idempotency-Key: load-%x-", time.Now().UnixNano())

const retryPause, retryFor = 50 * time.Millisecond, 30 * time.Second

// refused is an answer that was read to its end and is no success.
type refused struct{ status, body string }

func (r refused) Error() string { return r.status + " " + r.body }

func newHTTPWriter(target string, keys []string, body string, keyed bool) (writer, error) {
	conn, err := net.Dial("tcp", target)
	if err != nil {
		return nil, err
	}
	w := &httpWriter{conn, bufio.NewReaderSize(conn, 16<<10), map[string][]byte{}, map[string][]int{}, keyed}
	headers := "Content-Type: application/json\r\n"
	if keyed {
		headers += keyHeader + string(number) + "\r\n"
	}
	for _, key := range keys {
		w.requests[key] = fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\n%sContent-Length: %d\r\n\r\n%s",
			key, target, headers, len(body), body)
		for at := bytes.Index(w.requests[key], []byte("\r\n\r\n")); ; {
			found := bytes.Index(w.requests[key][at:], number)
			if found < 0 {
				break
			}
			w.numbers[key] = append(w.numbers[key], at+found)
			at += found + len(number)
		}
	}
	return w, nil
}

func (w *httpWriter) write(_ context.Context, key string) error {
	request := w.requests[key]
	if places := w.numbers[key]; len(places) > 0 {
		first := numbered.Add(int64(len(places))) - int64(len(places))
		for i, at := range places {
			copy(request[at:], fmt.Sprintf("%0*d", len(number), first+int64(i)))
		}
	}
	if !w.keyed {
		return w.ask(request)
	}
	at := bytes.Index(request, []byte(keyHeader)) + len(keyHeader)
	copy(request[at:], fmt.Sprintf("%0*d", len(number), keysUsed.Add(1)))
	for until := time.Now().Add(retryFor); ; {
		err := w.ask(request)
		var answer refused
		if !errors.As(err, &answer) || !strings.HasPrefix(answer.status, "HTTP/1.1 503") || time.Now().After(until) {
			return err
		}
		retried.Add(1)
		time.Sleep(retryPause)
	}
}

// ask sends a request and reads its answer to the end.
func (w *httpWriter) ask(request []byte) error {
	if _, err := w.conn.Write(request); err != nil {
		return err
	}
	line, err := w.reader.ReadSlice('\n')
	if err != nil {
		return err
	}
	status, isWell := "", len(line) >= 12 && line[9] == '2'
	if !isWell {
		status = strings.TrimSpace(string(line))
	}
	length := -1
	for {
		line, err := w.reader.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) <= 2 {
			break
		}
		if name, value, _ := strings.Cut(string(line), ":"); strings.EqualFold(name, "content-length") {
			if length, err = strconv.Atoi(strings.TrimSpace(value)); err != nil {
				return err
			}
		}
	}
	if length < 0 {
		return errors.New(status + " an answer without Content-Length")
	}
	if isWell {
		_, err = w.reader.Discard(length)
		return err
	}
	body := make([]byte, length)
	if _, err = io.ReadFull(w.reader, body); err != nil {
		return err
	}
	return refused{status, string(body)}
}

// etcdWriter puts by gRPC; a batch is one transaction.
type etcdWriter struct {
	client *clientv3.Client
	body   string
	batch  int
}

func (w *etcdWriter) write(ctx context.Context, key string) error {
	if w.batch <= 1 {
		_, err := w.client.Put(ctx, key, w.body)
		return err
	}
	puts := make([]clientv3.Op, w.batch)
	for i := range puts {
		puts[i] = clientv3.OpPut(key+"/"+strconv.Itoa(i), w.body)
	}
	_, err := w.client.Txn(ctx).Then(puts...).Commit()
	return err
}

// natsWriter publishes to a stream and waits for its acknowledgement; a batch is sent as a whole, then all are waited for.
type natsWriter struct {
	stream jetstream.JetStream
	body   []byte
	batch  int
}

func (w *natsWriter) write(ctx context.Context, key string) error {
	if w.batch <= 1 {
		_, err := w.stream.Publish(ctx, key, w.body)
		return err
	}
	acks := make([]jetstream.PubAckFuture, w.batch)
	for i := range acks {
		var err error
		if acks[i], err = w.stream.PublishAsync(key, w.body); err != nil {
			return err
		}
	}
	for _, ack := range acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func writers(p plan) ([]writer, error) {
	all := make([]writer, p.Connections)
	shared := map[string]*clientv3.Client{}
	for i := range all {
		target := p.Targets[i%len(p.Targets)]
		switch p.Kind {
		case "http":
			w, err := newHTTPWriter(target, p.Keys[i%len(p.Targets)], p.Body, p.Keyed)
			if err != nil {
				return nil, err
			}
			all[i] = w
		case "etcd":
			slot := fmt.Sprintf("%s#%d", target, i/len(p.Targets)/max(p.Shared, 1))
			if shared[slot] == nil {
				client, err := clientv3.New(clientv3.Config{Endpoints: []string{target}, DialTimeout: 5 * time.Second})
				if err != nil {
					return nil, err
				}
				shared[slot] = client
			}
			all[i] = &etcdWriter{shared[slot], p.Body, p.Batch}
		case "nats":
			conn, err := nats.Connect("nats://"+target, nats.DontRandomize(), nats.IgnoreDiscoveredServers())
			if err != nil {
				return nil, err
			}
			stream, err := jetstream.New(conn)
			if err != nil {
				return nil, err
			}
			all[i] = &natsWriter{stream, []byte(p.Body), p.Batch}
		default:
			return nil, fmt.Errorf("unknown kind %q", p.Kind)
		}
	}
	return all, nil
}

func run(p plan) (map[string]any, error) {
	all, err := writers(p)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration((p.Seconds+60)*float64(time.Second)))
	defer cancel()
	var ready, done sync.WaitGroup
	var failed atomic.Pointer[error]
	var slots atomic.Int64
	start, times := make(chan time.Time), make([][]time.Duration, len(all))
	for i, w := range all {
		ready.Add(1)
		done.Add(1)
		go func() {
			defer done.Done()
			keys := p.Keys[i%len(p.Targets)]
			at := i / len(p.Targets) * 7
			next := func() error {
				at++
				return w.write(ctx, keys[at%len(keys)])
			}
			err := next()
			if err != nil {
				failed.Store(&err)
			}
			ready.Done()
			begun, last := <-start, time.Now()
			until := begun.Add(time.Duration(p.Seconds * float64(time.Second)))
			for err == nil && last.Before(until) {
				slot := slots.Add(1) - 1
				if p.Writes > 0 && slot >= p.Writes {
					return
				}
				if p.Rate > 0 {
					last = begun.Add(time.Duration(float64(slot) / p.Rate * float64(time.Second)))
					if !last.Before(until) {
						return
					}
					time.Sleep(time.Until(last))
				}
				if err = next(); err != nil {
					failed.Store(&err)
					return
				}
				now := time.Now()
				times[i] = append(times[i], now.Sub(last))
				last = now
			}
		}()
	}
	ready.Wait()
	begun := time.Now()
	for range all {
		start <- begun
	}
	done.Wait()
	elapsed := time.Since(begun).Seconds()
	if err := failed.Load(); err != nil {
		return nil, *err
	}
	flat := slices.Concat(times...)
	slices.Sort(flat)
	if len(flat) == 0 {
		return nil, errors.New("not one write was answered")
	}
	at := func(share float64) float64 {
		return flat[min(int(share*float64(len(flat))), len(flat)-1)].Seconds() * 1000
	}
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	cpu := float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
	found := map[string]any{
		"writes": len(flat), "all_writes": len(flat) + len(all), "seconds": elapsed, "p50_ms": at(0.50), "p99_ms": at(0.99), "load_cpu_s": cpu,
		"retried": retried.Load(),
	}
	if p.Times {
		each := make([]float64, len(flat))
		for i, took := range flat {
			each[i] = took.Seconds() * 1000
		}
		found["times_ms"] = each
	}
	return found, nil
}

// create makes the replicated stream of the NATS servers, on files, and tells which of them leads it.
func create(target string, replicas int) (map[string]any, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := nats.Connect("nats://" + target)
	if err != nil {
		return nil, err
	}
	manager, err := jetstream.New(conn)
	if err != nil {
		return nil, err
	}
	config := jetstream.StreamConfig{Name: "bench", Subjects: []string{"bench.>"}, Storage: jetstream.FileStorage, Replicas: replicas}
	stream, err := manager.CreateOrUpdateStream(ctx, config)
	if err != nil {
		return nil, err
	}
	info, err := stream.Info(ctx)
	if err != nil {
		return nil, err
	}
	if info.Cluster == nil || info.Cluster.Leader == "" || len(info.Cluster.Replicas) != replicas-1 {
		return nil, errors.New("the stream has no leader yet")
	}
	return map[string]any{"leader": info.Cluster.Leader, "replicas": info.Config.Replicas}, nil
}

func main() {
	stream := flag.String("create-stream", "", "create a NATS stream with three replicas at this server, instead of a load")
	flag.Parse()
	var result map[string]any
	var err error
	if *stream != "" {
		result, err = create(*stream, 3)
	} else {
		var p plan
		var input []byte
		if input, err = io.ReadAll(os.Stdin); err == nil {
			if err = json.Unmarshal(input, &p); err == nil {
				result, err = run(p)
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_ = json.NewEncoder(os.Stdout).Encode(result)
}
