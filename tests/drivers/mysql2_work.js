// mysql2: text and prepared statements, transactions, several statements at once, LOAD DATA LOCAL, resets, other users,
// compression.
"use strict";

const assert = require("assert");
const fs = require("fs");
const { Readable } = require("stream");
const mysql = require("mysql2/promise");

const env = process.env;
const way = env.WORK_WAY;
const table = env.WORK_TABLE;
let goingOn = true;
process.stdin.resume();
process.stdin.on("end", () => { goingOn = false; });

const options = {
  host: env.WORK_HOST,
  port: Number(env.WORK_PORT),
  user: env.WORK_USER,
  password: env.WORK_PASSWORD,
  database: env.WORK_DATABASE,
  multipleStatements: true,
  compress: way === "compressed",
  ssl: way === "plain" ? undefined : { ca: fs.readFileSync(env.WORK_CA, "utf8"), verifyIdentity: true },
};

async function scalar(db, sql) {
  const [rows] = await db.query({ sql, rowsAsArray: true });
  return rows[0][0];
}

async function main() {
  const db = await mysql.createConnection(options);
  const side = await mysql.createConnection(options);
  await db.query(`create table ${table} (n int primary key, v varchar(40))`);
  await db.query("set @mine = ?, time_zone = '+03:00'", ["Grüße ☃"]);
  const insert = `insert into ${table} values (?, ?)`;
  const infile = await scalar(db, "select @@local_infile");
  let written = 0;
  while (goingOn) {
    for (let i = 0; i < 5; i += 1) {
      const [done] = await db.execute(insert, [written, "prepared"]);
      assert.strictEqual(done.affectedRows, 1);
      written += 1;
    }
    // Not awaited one by one: the driver queues them.
    await Promise.all([0, 1, 2].map((i) => db.query(insert, [written + i, "text"])));
    written += 3;
    await db.beginTransaction();
    await db.execute(insert, [written, "prepared"]);
    await db.query(insert, [written + 1, "text"]);
    await db.commit();
    written += 2;
    await db.beginTransaction();
    await db.execute(insert, [written, "not to stay"]);
    await db.rollback();
    const [found] = await db.execute(`select n, v from ${table} where n = ?`, [written - 2]);
    assert.deepStrictEqual({ ...found[0] }, { n: written - 2, v: "prepared" });
    const [both] = await db.query({ sql: "select 1; select 'two', @mine", rowsAsArray: true });
    assert.deepStrictEqual(both, [[[1]], [["two", "Grüße ☃"]]]);
    if (infile) {
      const lines = Array.from({ length: 50 }, (_, i) => `${written + i}\tloaded\n`).join("");
      await db.query({
        sql: `load data local infile 'rows' into table ${table}`,
        infileStreamFactory: () => Readable.from([Buffer.from(lines)]),
      });
      written += 50;
    }
    assert.strictEqual(await scalar(db, "select repeat('a', 100000)"), "a".repeat(100000));
    await assert.rejects(db.query(insert, [0, "taken"]), { errno: 1062 });
    for (const [user, password] of [["second", env.WORK_SECOND_PASSWORD], [env.WORK_USER, env.WORK_PASSWORD]]) {
      await side.query("set @gone = 1");
      await side.reset();
      assert.strictEqual(await scalar(side, "select @gone"), null);
      await side.changeUser({ user, password, database: env.WORK_DATABASE });
      assert.strictEqual((await scalar(side, "select current_user()")).split("@")[0], user);
    }
    await db.ping();
    assert.strictEqual(await scalar(db, "select @@session.time_zone"), "+03:00");
    console.log("round " + await scalar(db, "select connection_id()"));
  }
  const [[row]] = await db.query(`select count(*) as n, count(distinct n) as d from ${table}`);
  assert.deepStrictEqual({ ...row }, { n: written, d: written });
  console.log("right");
  await db.end();
  await side.end();
}

main().catch((error) => { console.error(error); process.exit(1); });
