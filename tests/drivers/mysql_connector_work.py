"""mysql-connector-python, in Python alone or with its C extension: prepared cursors, transactions, several statements at
once, LOAD DATA LOCAL, resets, other users, compression."""

import os

import mysql.connector
import mysql_work as work

PURE = os.environ["WORK_DRIVER"] == "pure"
if not PURE:
    assert mysql.connector.HAVE_CEXT, "the wheel has a C extension"

work.begin()
tls = (
    dict(ssl_ca=work.CA, ssl_verify_cert=True, ssl_verify_identity=True) if work.TLS else dict(ssl_disabled=True)
)


def connect():
    return mysql.connector.connect(
        host=work.HOST,
        port=work.PORT,
        user=work.USER,
        password=work.PASSWORD,
        database=work.DATABASE,
        autocommit=True,
        allow_local_infile=True,
        compress=work.COMPRESS,
        use_pure=PURE,
        # Collations that all servers have.
        collation="utf8mb4_general_ci",
        **tls,
    )


def scalar(cursor, sql):
    cursor.execute(sql)
    ((value,),) = cursor.fetchall()
    return value


def several(cursor, sql):
    """Results of several statements; the way there is another since 9.2."""
    results = []
    cursor.execute(sql)
    while True:
        if cursor.with_rows:
            results.append(cursor.fetchall())
        if not cursor.nextset():
            return results


db = connect()
cursor = db.cursor()
cursor.execute(work.CREATE)
cursor.execute("set @mine = %s, time_zone = '+03:00'", ("Grüße ☃",))
insert = db.cursor(prepared=True)
select = db.cursor(prepared=True)
side = connect()
written = 0
while work.going_on():
    for _ in range(5):
        insert.execute(work.INSERT, (written, "prepared"))
        work.must_be(insert.rowcount, 1)
        written += 1
    db.start_transaction()
    cursor.execute(work.INSERT, (written, "text"))
    insert.execute(work.INSERT, (written + 1, "prepared"))
    db.commit()
    written += 2
    db.start_transaction()
    insert.execute(work.INSERT, (written, "not to stay"))
    db.rollback()
    select.execute(f"select n, v from {work.TABLE} where n = %s", (written - 1,))
    work.must_be([tuple(row) for row in select.fetchall()], [(written - 1, "prepared")])
    work.must_be(several(cursor, "select 1; do 0; select 'two', @mine"), [[(1,)], [("two", "Grüße ☃")]])
    written += work.load(cursor, written)
    work.must_be(scalar(cursor, f"select repeat('a', {work.LARGE})"), "a" * work.LARGE)
    try:
        cursor.execute(work.INSERT, (0, "taken"))
        raise SystemExit("a second row of the same number")
    except mysql.connector.IntegrityError as error:
        work.must_be(error.errno, 1062)
    for user, password in [work.SECOND, (work.USER, work.PASSWORD)]:
        other = side.cursor()
        other.execute("set @gone = 1")
        side.cmd_reset_connection()
        work.must_be(scalar(other, "select @gone"), None)
        other.close()
        if PURE and work.COMPRESS:
            continue  # "Change user is not supported with compression"
        side.cmd_change_user(user, password, work.DATABASE)
        other = side.cursor()
        work.must_be(scalar(other, "select current_user()").split("@")[0], user)
        other.close()
    db.ping(reconnect=False)
    cursor.execute("select connection_id(), @@session.time_zone")
    ((number, zone),) = cursor.fetchall()
    work.must_be(zone, "+03:00")
    work.round_over(number)
cursor.execute(work.COUNT)
((rows, distinct),) = cursor.fetchall()
work.finish(written, rows, distinct)
db.close()
side.close()
