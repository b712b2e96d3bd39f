// The NATS server as its module builds it, with the flags of its own command.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/nats-io/nats-server/v2/server"
)

func main() {
	flags := flag.NewFlagSet("nats-server", flag.ExitOnError)
	options, err := server.ConfigureOptions(flags, os.Args[1:], server.PrintServerAndExit, flags.Usage, server.PrintTLSHelpAndDie)
	if err != nil {
		server.PrintAndDie(err.Error())
	}
	node, err := server.NewServer(options)
	if err != nil {
		server.PrintAndDie(fmt.Sprintf("nats-server: %s", err))
	}
	node.ConfigureLogger()
	if err := server.Run(node); err != nil {
		server.PrintAndDie(err.Error())
	}
	node.WaitForShutdown()
}
