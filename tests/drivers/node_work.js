// node-postgres: plain and named statements, a transaction, LISTEN left out (it is a blocker).
"use strict";

const fs = require("fs");
const { Client } = require("pg");

let goingOn = true;
process.stdin.resume();
process.stdin.on("end", () => { goingOn = false; });

async function main() {
  const client = new Client({
    host: process.env.WORK_HOST,
    port: Number(process.env.WORK_PORT),
    user: process.env.WORK_USER,
    password: process.env.WORK_PASSWORD,
    database: process.env.WORK_DATABASE,
    ssl: { ca: fs.readFileSync(process.env.WORK_CA, "utf8"), servername: process.env.WORK_HOST },
  });
  await client.connect();
  await client.query("create table work (n int)");
  let written = 0;
  let server = null;
  while (goingOn) {
    for (let i = 0; i < 5; i += 1) {
      await client.query({ name: "insert", text: "insert into work values ($1)", values: [written] });
      written += 1;
    }
    // Not awaited one by one: the driver queues them.
    await Promise.all([0, 1, 2].map((i) => client.query("insert into work values ($1)", [written + i])));
    written += 3;
    await client.query("begin");
    await client.query("insert into work values ($1)", [written]);
    await client.query("commit");
    written += 1;
    const now = (await client.query("select pg_backend_pid() as pid")).rows[0].pid;
    if (now !== server) {
      server = now;
      console.log("server " + server);
    }
  }
  const row = (await client.query("select count(*)::int as rows, count(distinct n)::int as distinct from work")).rows[0];
  if (row.rows !== written || row.distinct !== written) {
    throw new Error(`told ${written} rows, there are ${row.rows}, ${row.distinct} of them distinct`);
  }
  console.log("right");
  await client.end();
}

main().catch((error) => { console.error(error); process.exit(1); });
